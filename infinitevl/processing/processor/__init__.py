"""The processor: text, pictures and videos as the tensors that the model takes."""
