"""Products with their norms and gates: plain torch, Triton, and training side by side."""
