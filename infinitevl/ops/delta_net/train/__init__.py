"""Gated DeltaNet in training on CUDA, with gradients."""
