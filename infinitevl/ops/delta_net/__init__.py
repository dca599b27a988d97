"""Gated DeltaNet between its projections: plain torch, Triton, and training side by side."""
