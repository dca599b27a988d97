"""InfiniteVL: a vision-language model that watches a stream without end in a state of constant size.

Importing this package registers its classes with the Auto classes of transformers.
"""

from importlib.metadata import PackageNotFoundError, version

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from infinitevl.config import InfiniteVLConfig
from infinitevl.engine.chat import ChatSession
from infinitevl.engine.engine import Engine
from infinitevl.engine.loading import CATALOGUE, load
from infinitevl.engine.sampling import Sampling
from infinitevl.engine.session import StreamSession, StreamStats
from infinitevl.errors import CheckpointError, InfiniteVLError, InputError, SourceError, StateError
from infinitevl.model.hf_cache import StateCache
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.processing.processor import InfiniteVLProcessor, register
from infinitevl.processing.video import open_source
from infinitevl.processing.vision_info import process_vision_info
from infinitevl.state import StreamState

__all__ = [
    "CATALOGUE",
    "ChatSession",
    "CheckpointError",
    "Engine",
    "InfiniteVLConfig",
    "InfiniteVLError",
    "InfiniteVLForConditionalGeneration",
    "InfiniteVLProcessor",
    "InputError",
    "Sampling",
    "SourceError",
    "StateCache",
    "StateError",
    "StreamSession",
    "StreamState",
    "StreamStats",
    "load",
    "open_source",
    "process_vision_info",
]

try:
    __version__ = version("infinitevl")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+unknown"

AutoConfig.register(InfiniteVLConfig.model_type, InfiniteVLConfig, exist_ok=True)
AutoModelForImageTextToText.register(InfiniteVLConfig, InfiniteVLForConditionalGeneration, exist_ok=True)
AutoModelForCausalLM.register(InfiniteVLConfig, InfiniteVLForConditionalGeneration, exist_ok=True)
register(InfiniteVLConfig)
