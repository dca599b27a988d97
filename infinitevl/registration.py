"""Tells the Auto classes of transformers about InfiniteVL without importing transformers before it is used.

Each Auto class keeps its table in a module of its own. Right after such a module has been imported, a
stand-in for our class is registered there; as soon as our class itself is imported, it takes that place. Of
ours only the configuration is imported on the way, because transformers may be half imported at that moment.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_CONFIG, _MODEL, _PROCESSOR = (
    f"transformers.models.auto.{name}_auto" for name in ("configuration", "modeling", "processing")
)
_CLASSES = {  # our class for each table, and its module
    _MODEL: ("infinitevl.model.infinitevl", "InfiniteVLForConditionalGeneration"),
    _PROCESSOR: ("infinitevl.processing.processor.processor", "InfiniteVLProcessor"),
}
_HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
_OF_MODELS = ("config", "dtype", "torch_dtype")


def register_when_needed() -> None:
    """Register with every table that transformers has imported, and with each other one when it is imported.

    A second call changes nothing.
    """
    if any(_is_ours(finder) for finder in sys.meta_path):
        return
    calls: dict[str, Callable[[], None]] = {_CONFIG: _register_config}
    for table, (home, _) in _CLASSES.items():
        calls[table] = calls[home] = {_MODEL: _register_model, _PROCESSOR: _register_processor}[table]
    sys.meta_path.insert(0, _AfterImport(calls))
    for table in (_CONFIG, _MODEL, _PROCESSOR):
        if table in sys.modules:
            calls[table]()


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from infinitevl.config import InfiniteVLConfig

    AutoConfig.register(InfiniteVLConfig.model_type, InfiniteVLConfig, exist_ok=True)


def _register_model() -> None:
    if _MODEL not in sys.modules:
        return
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM, AutoModelForImageTextToText

    from infinitevl.config import InfiniteVLConfig

    ours = _class_or_stand_in(_MODEL)
    AutoModelForImageTextToText.register(InfiniteVLConfig, ours, exist_ok=True)
    AutoModelForCausalLM.register(InfiniteVLConfig, ours, exist_ok=True)


def _register_processor() -> None:
    """Let AutoProcessor give our processor for every folder whose config is ours.

    AutoProcessor alone prefers the class that a folder's processor files name to its registry; published
    folders name Qwen's processor, which cannot be built without torchvision. So the model type goes first.
    """
    if _PROCESSOR not in sys.modules:
        return
    from transformers.models.auto.processing_auto import AutoProcessor

    from infinitevl.config import InfiniteVLConfig

    ours = _class_or_stand_in(_PROCESSOR)
    AutoProcessor.register(InfiniteVLConfig, ours, exist_ok=True)
    by_class_name = AutoProcessor.from_pretrained
    if hasattr(by_class_name, "__wrapped__"):
        return

    @wraps(by_class_name)
    def from_pretrained(name: Any, **kwargs: Any) -> Any:
        if _model_type(name, kwargs) == InfiniteVLConfig.model_type:
            # What a pipeline passes beside the processor's own keywords concerns its model.
            own = {key: kwargs[key] for key in kwargs if key not in _OF_MODELS and not key.startswith("_")}
            return ours.from_pretrained(name, **own)
        return by_class_name(name, **kwargs)

    AutoProcessor.from_pretrained = staticmethod(from_pretrained)  # type: ignore[method-assign, assignment]


def _model_type(name: Any, kwargs: dict[str, Any]) -> str | None:
    """The model type that a folder's config states; None if there is no config to read."""
    from transformers.configuration_utils import PreTrainedConfig

    hub = {key: kwargs[key] for key in _HUB_KEYS if key in kwargs}
    try:
        return PreTrainedConfig.get_config_dict(name, **hub)[0].get("model_type")
    except (OSError, ValueError):
        return None


class _StandIn(type):
    """A class that has the attributes of another one, which is imported when the first of them is used."""

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls._itself(), name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._itself()(*args, **kwargs)

    def _itself(cls) -> Any:
        return getattr(importlib.import_module(cls.__module__), cls.__name__)


def _class_or_stand_in(table: str) -> Any:
    from infinitevl.config import InfiniteVLConfig

    home, name = _CLASSES[table]
    if hasattr(sys.modules.get(home), name):
        return getattr(sys.modules[home], name)
    return _StandIn(name, (), {"__module__": home, "config_class": InfiniteVLConfig})


class _AfterImport(MetaPathFinder):
    """Finds modules as the other finders do, and calls a function after the import of some of them."""

    def __init__(self, calls: dict[str, Callable[[], None]]) -> None:
        self._calls = calls

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The other finders' spec, with a loader that makes the call; None for a module without a call."""
        if fullname not in self._calls:
            return None
        for finder in sys.meta_path:
            spec = None if _is_ours(finder) else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                _call_after(spec.loader, fullname, self._calls[fullname])
                return spec
        return None


def _is_ours(finder: Any) -> bool:
    """Whether it is an _AfterImport, also one from before this module was reloaded."""
    return type(finder).__name__ == _AfterImport.__name__ and type(finder).__module__ == __name__


def _call_after(loader: Loader, name: str, call: Callable[[], None]) -> None:
    """Let `loader` make the call when it has executed the module of this name."""
    execute = loader.exec_module

    def execute_and_call(module: ModuleType) -> None:
        execute(module)
        if module.__name__ == name:  # a zip file's loader serves all of its modules
            call()

    loader.exec_module = execute_and_call  # type: ignore[method-assign]
