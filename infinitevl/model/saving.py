"""A model's folder, written so that no full disk and no killed process leaves one that half loads."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from infinitevl.config import InfiniteVLConfig
from infinitevl.errors import CheckpointError
from infinitevl.files import folder_aside

# Weight files of one variant: in one piece, a shard of several, and the index that names the shards.
_WEIGHTS = r"model{variant}(-\d{{5}}-of-\d{{5}})?\.safetensors"
_INDEX = r"model\.safetensors\.index{variant}\.json"


@contextlib.contextmanager
def saving_errors(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what is raised over a folder that cannot be written into a CheckpointError."""
    if Path(folder).is_file():
        raise CheckpointError(f"could not save into {folder}: it is a file. Give a folder's name.")
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise CheckpointError(
            f"could not save into {folder}: {reason}. Free some space or choose another folder, and save "
            "again."
        ) from error


@contextlib.contextmanager
def whole_folder(folder: str | os.PathLike[str], variant: str | None = None) -> Iterator[Path]:
    """Yield a folder to write a model's files into; on success they move to `folder`, together.

    After an error the older files are as they were. Older weights of the variant go, whatever their number:
    transformers would take them where both one file and shards are there.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with folder_aside(target) as aside:
        yield aside
        written = [path for path in aside.iterdir() if path.is_file()]
        is_weights = _weights_pattern(variant)
        if any(is_weights.fullmatch(path.name) for path in written):
            _remove(path for path in target.iterdir() if is_weights.fullmatch(path.name))
        for path in sorted(written, key=_order):
            path.replace(target / path.name)


def _weights_pattern(variant: str | None) -> re.Pattern[str]:
    part = re.escape(f".{variant}") if variant else ""
    return re.compile("|".join(pattern.format(variant=part) for pattern in (_WEIGHTS, _INDEX)))


def _remove(paths: Iterator[Path]) -> None:
    """Remove weights, those first without which the others do not load."""
    for path in sorted(paths, key=_order, reverse=True):
        path.unlink(missing_ok=True)  # several processes may save at once


def _order(path: Path) -> tuple[int, str]:
    """Shards, then the index that names them: a folder without the last one does not load."""
    return path.name.startswith("model") + (".index" in path.name), path.name


def write_model_card(folder: str | os.PathLike[str], config: InfiniteVLConfig) -> None:
    """Write a README.md with front matter for the hub."""
    text = _CARD.format(layers=config.text_config.num_hidden_layers, types=_layer_summary(config))
    (Path(folder) / "README.md").write_text(text)


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
