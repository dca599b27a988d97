"""Gated DeltaNet on CUDA: many tokens in a preparation and a scan, one token in one kernel."""
