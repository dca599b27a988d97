"""Measuring: speed and memory of our engine, beside a stock Transformer of the same shape."""
