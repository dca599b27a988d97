"""Adds LoRA adapters to every projection of the decoder, through peft."""

import warnings
from pathlib import Path
from typing import Any

from infinitevl.errors import InfiniteVLError
from infinitevl.files import atomic_write
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.opening import is_builtin
from infinitevl.training.parts import PROJECTIONS

_CARD = """---
library_name: peft
tags: [lora, infinitevl]
---
# A LoRA adapter of an InfiniteVL

Base model: `{base}`. Rank {rank}, alpha {alpha}, beside every projection of the decoder's layers.
It fits this base model alone.

```python
from pathlib import Path

import infinitevl
from infinitevl.model.adapters import merge_adapter_

model, processor = infinitevl.load("{base}")
merge_adapter_(model, Path("{folder}"))  # adds it into the projections; needs no peft
```

Or with peft, instead of `merge_adapter_`, as a part that can be taken off again:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, "{folder}")
```
"""


def check_installed() -> None:
    """Checks that adapters can be made, before anything large is loaded.

    Raises:
        InfiniteVLError: peft is not installed.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise InfiniteVLError("LoRA needs peft: pip install 'infinitevl[train]'.") from error


def add_adapters(
    model: InfiniteVLForConditionalGeneration, rank: int, alpha: int, dropout: float = 0.0
) -> Any:
    """Adds an adapter to each projection of all layers, and freezes everything else.

    Returns:
        The `peft.PeftModel` around `model`, which now holds the adapters itself.

    Raises:
        InfiniteVLError: peft is not installed.
    """
    check_installed()
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=PROJECTIONS)
    with warnings.catch_warnings():  # peft asks transformers by a name that 5.23 calls deprecated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config)


def merged(adapted: Any) -> InfiniteVLForConditionalGeneration:
    """Adds the adapters into the projections, removes them, and returns the model."""
    return adapted.merge_and_unload()


def save_adapter(adapted: Any, base: str, folder: Path) -> None:
    """Writes the adapter in peft's format, with a card; base: name of the model that it belongs to."""
    config = adapted.peft_config["default"]
    config.base_model_name_or_path = None if is_builtin(base) else base  # peft reads it as a hub's name
    adapted.save_pretrained(folder, save_embedding_layers=False)  # they never change; peft would ask a hub
    card = _CARD.format(base=base, rank=config.r, alpha=config.lora_alpha, folder=folder)
    with atomic_write(folder / "README.md") as path:
        path.write_text(card)
