"""Measure speed and memory of the engine, beside a stock Transformer of the same shape."""
