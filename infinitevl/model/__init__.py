"""The modules of the model, and its faces to transformers."""
