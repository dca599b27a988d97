"""The errors of the package: each says what was given, what is valid, and what to do next."""


class InfiniteVLError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(InfiniteVLError, ValueError):
    """A picture, video, text, time or argument that cannot be used."""


class SourceError(InfiniteVLError, OSError):
    """A video, camera or stream that cannot be opened, or that broke."""


class StateError(InfiniteVLError, ValueError):
    """A state that is damaged, belongs to another model, or is full."""


class CheckpointError(InfiniteVLError, OSError):
    """Weights or a configuration that do not make a model."""
