"""Sessions, and the engine that runs many of them on one model."""
