"""InfiniteVL: a vision-language model that watches a stream without end in a state of constant size.

After this import the Auto classes of transformers know the model. Neither torch nor transformers is imported
before one of the names below, or one of those Auto classes, is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from infinitevl.registration import register_when_needed

if TYPE_CHECKING:
    from infinitevl.config import InfiniteVLConfig as InfiniteVLConfig
    from infinitevl.engine.answers import Answer as Answer
    from infinitevl.engine.chat import ChatSession as ChatSession
    from infinitevl.engine.engine import Engine as Engine
    from infinitevl.engine.loading import list_models as list_models
    from infinitevl.engine.loading import load as load
    from infinitevl.engine.sampling import Sampling as Sampling
    from infinitevl.engine.session import StreamSession as StreamSession
    from infinitevl.engine.session import StreamStats as StreamStats
    from infinitevl.errors import CheckpointError as CheckpointError
    from infinitevl.errors import InfiniteVLError as InfiniteVLError
    from infinitevl.errors import InputError as InputError
    from infinitevl.errors import SourceError as SourceError
    from infinitevl.errors import StateError as StateError
    from infinitevl.model.adapters import merge_adapter_ as merge_adapter_
    from infinitevl.model.hf_cache import StateCache as StateCache
    from infinitevl.model.infinitevl import (
        InfiniteVLForConditionalGeneration as InfiniteVLForConditionalGeneration,
    )
    from infinitevl.processing.processor.processor import InfiniteVLProcessor as InfiniteVLProcessor
    from infinitevl.processing.processor.vision_info import process_vision_info as process_vision_info
    from infinitevl.processing.sources.frames import Frame as Frame
    from infinitevl.processing.sources.opening import open_source as open_source
    from infinitevl.state import StreamState as StreamState

    __version__: str

# Where each public name is defined; a test holds it equal to the imports above, which type checkers read.
_HOMES = {
    "Answer": "infinitevl.engine.answers",
    "ChatSession": "infinitevl.engine.chat",
    "CheckpointError": "infinitevl.errors",
    "Engine": "infinitevl.engine.engine",
    "Frame": "infinitevl.processing.sources.frames",
    "InfiniteVLConfig": "infinitevl.config",
    "InfiniteVLError": "infinitevl.errors",
    "InfiniteVLForConditionalGeneration": "infinitevl.model.infinitevl",
    "InfiniteVLProcessor": "infinitevl.processing.processor.processor",
    "InputError": "infinitevl.errors",
    "Sampling": "infinitevl.engine.sampling",
    "SourceError": "infinitevl.errors",
    "StateCache": "infinitevl.model.hf_cache",
    "StateError": "infinitevl.errors",
    "StreamSession": "infinitevl.engine.session",
    "StreamState": "infinitevl.state",
    "StreamStats": "infinitevl.engine.session",
    "list_models": "infinitevl.engine.loading",
    "load": "infinitevl.engine.loading",
    "merge_adapter_": "infinitevl.model.adapters",
    "open_source": "infinitevl.processing.sources.opening",
    "process_vision_info": "infinitevl.processing.processor.vision_info",
}
__all__ = [*_HOMES]

register_when_needed()

if not TYPE_CHECKING:  # a type checker that saw this would take any name for a public one

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used."""
        if name == "__version__":
            value = _version()
        elif name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f"module 'infinitevl' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("infinitevl")
    except PackageNotFoundError:  # run from a source tree that was not installed
        return "0+unknown"
