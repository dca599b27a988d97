"""Attention over a window and of the vision encoder: plain torch, Triton, and training side by side."""
