"""Functions on tensors: the definition of every operation, and its fast implementations."""
