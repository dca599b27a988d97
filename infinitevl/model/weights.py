"""Checkpoints: the names of both published forms, what a good one holds, and which model a state is of."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from infinitevl.config import InfiniteVLConfig
from infinitevl.errors import CheckpointError

# The older published prefix -> ours (the newer one).
PREFIX_MAPPING = {
    r"^visual\.": "model.visual.",
    r"^model\.(?=layers\.|embed_tokens\.|norm\.)": "model.language_model.",
}

# Values of each weight that enter a fingerprint: enough to tell fine-tunings apart, quick for 4 B parameters.
_SAMPLES = 1024


@contextlib.contextmanager
def loading_errors(name: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what transformers and safetensors raise over missing or broken files into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{name} could not be loaded: {str(error).strip()} Check that config.json and every weight file "
            "are there and whole; download the folder again if in doubt."
        ) from error


def check_loading(name: str | os.PathLike[str], info: dict[str, Any]) -> None:
    """Refuse a checkpoint that did not fill the model exactly.

    Args:
        info: `missing_keys`, `unexpected_keys` and `mismatched_keys` as transformers reports them.

    Raises:
        CheckpointError: names the weights and says what to do.
    """
    problems = []
    for kind in ("missing", "unexpected", "mismatched"):
        names = sorted(
            str(key[0] if isinstance(key, tuple) else key) for key in info.get(f"{kind}_keys") or ()
        )
        if names:
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            problems.append(f"{len(names)} {kind} weight(s): {shown}")
    if problems:
        raise CheckpointError(
            f"{name} does not fill this model: {'; '.join(problems)}. Check that every shard is there and "
            "that config.json belongs to the weights, or pass strict=False to load what fits."
        )


def fingerprint(model: nn.Module, config: InfiniteVLConfig) -> str:
    """What tells one model from another: sizes and a sample of every weight, whatever dtype it is loaded in.

    Returns:
        32 hexadecimal digits.
    """
    ignored = {"dtype", "torch_dtype", "transformers_version", "architectures", "_name_or_path"}
    sizes = {key: value for key, value in config.to_dict().items() if key not in ignored}
    sizes["vision_config"] = {k: v for k, v in sizes["vision_config"].items() if k not in ignored}
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(_sample(weight).numpy().tobytes())
    return digest.hexdigest()[:32]


def _sample(weight: Tensor) -> Tensor:
    flat = weight.detach().flatten()
    index = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), device=flat.device).long()
    return flat[index].to(torch.bfloat16).cpu().view(torch.int16)


def write_model_card(folder: str | os.PathLike[str], config: InfiniteVLConfig) -> None:
    """A README.md with front matter beside the weights, unless the folder has one."""
    card = Path(folder) / "README.md"
    if not card.exists():
        card.write_text(
            _CARD.format(layers=config.text_config.num_hidden_layers, types=_layer_summary(config))
        )


def _layer_summary(config: InfiniteVLConfig) -> str:
    kinds = list(config.text_config.layer_types)
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


_CARD = """---
library_name: infinitevl
pipeline_tag: image-text-to-text
tags:
- infinite_vl
- streaming
- gated-deltanet
- arxiv:2512.08829
---

# InfiniteVL

A vision-language model with {layers} decoder layers ({types}), after arXiv 2512.08829.

```python
import infinitevl

model, processor = infinitevl.load("path/to/this/folder")
session = infinitevl.StreamSession(model, processor)
session.observe("frame.png", at=0.0)
print(session.ask("What is this?"))
```

Data, licences, training settings and scores: to be filled in by whoever trained these weights.
"""
