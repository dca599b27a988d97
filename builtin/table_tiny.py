"""A plan of the tables that runs in minutes on a CPU: a random teacher, few steps, few questions."""

from dataclasses import replace
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer

from builtin.table_plan import Plan
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.training.learner import start_weights_
from infinitevl.training.loop import special_ids
from infinitevl.training.recipe import Recipe

_DECODER = {  # heads as wide as the built-in model's, so that a GPU runs the same kernels
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "mrope_section": [8, 12, 12],
    "num_linear_heads": 1,
    "num_linear_key_value_heads": 1,
    "linear_head_dim": 64,
    "layer_types": ["full_attention"] * 4,
}
_VISION = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48}


def write_tiny(plan: Plan, folder: Path) -> Path:
    """Write a tiny teacher and the plan for it; returns the plan's file."""
    teacher = folder / "teacher"
    if not teacher.exists():
        write_teacher(plan, teacher)
    found = plan.model_dump(mode="json", exclude_unset=True)
    draws = [{**draw, "num_pictures": 8} for draw in found["data"]["draws"]]
    draws[-1]["buckets"] = {"stream4": 1.0}
    found["teacher"] = str(teacher)
    found["data"] |= {"num_steps": 6, "workers": 0, "draws": draws}
    found |= {"pace_seconds": 0.1, "exam_seconds": 5, "most_steps": 8}
    found["exam"]["num_samples"] = 2
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(found, sort_keys=False))
    return path


def write_teacher(plan: Plan, folder: Path) -> None:
    """Random weights that read the small world's tokens."""
    tokenizer = Tokenizer.from_file(str(plan.tokenizer))
    recipe = replace(Recipe.read("recipes/builtin.yaml"), decoder=_DECODER, vision=_VISION)
    torch.manual_seed(0)
    model = InfiniteVLForConditionalGeneration(recipe.config(special_ids(tokenizer)))
    start_weights_(model)
    model.save_pretrained(folder)
