"""The small world as what a stage learns from."""
