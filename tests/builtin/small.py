"""A tiny model of the small world, and recipes for it."""

from pathlib import Path
from typing import Any

from builtin.rehearsal import tiny_shape
from builtin.stages import SmallStage, parse_stage
from builtin.start import read_shape, write_start
from builtin.world.packs import small_pack_path

ROOT = Path(__file__).parents[2]
BUILTIN = ROOT / "infinitevl" / "assets" / "builtin"
RECIPES = ROOT / "builtin" / "recipes"


def write_tiny_start(folder: Path, shape: str = "hybrid/shape.yaml", **more: Any) -> Path:
    """A new tiny model with the built-in vocabulary, in `folder`."""
    write_start(tiny_shape(read_shape(RECIPES / shape)), BUILTIN / "tokenizer.json", folder, **more)
    return folder


def pretraining(start: Path, out: Path, draws: list[dict[str, Any]], **changes: Any) -> SmallStage:
    """Pretraining in float32 on the small pack."""
    settings = {
        "stage": "pretrain",
        "student": str(start),
        "out": str(out),
        "trains": ["vision", "decoder"],
        "patches": 0.2,
        "num_steps": 6,
        "learning_rate": 3e-3,
        "dtype": "float32",
        "gradient_checkpointing": False,
        "data": {"scenes": {"pack": str(small_pack_path()), "draws": draws}},
    }
    return parse_stage(settings | changes)
