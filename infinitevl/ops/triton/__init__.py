"""The same operations as Triton kernels, for CUDA; what they compute is defined in `infinitevl.ops`."""
