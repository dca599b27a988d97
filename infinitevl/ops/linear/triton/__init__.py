"""Products, norms and gates on CUDA."""
