"""Small teachers as transformers itself writes them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.support import TINY_IDS, TINY_TEXT, TINY_VISION, scale_weights_, tiny_processor

TEXT_KEYS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "bos_token_id eos_token_id"
).split()


def qwen_config(**overrides: Any) -> Qwen2_5_VLConfig:
    text = {key: TINY_TEXT[key] for key in TEXT_KEYS}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}}
    vision = {**TINY_VISION, "tokens_per_second": 2}
    return Qwen2_5_VLConfig(
        text_config={**text, "rms_norm_eps": 1e-6, **overrides},
        vision_config=vision,
        tie_word_embeddings=True,
        **TINY_IDS,
    )


def write_qwen(folder: Path, *, flat: bool = False, older: bool = True) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL checkpoint with the tiny processor: its configuration flat or nested, either prefix."""
    torch.manual_seed(3)
    model = Qwen2_5_VLForConditionalGeneration(qwen_config()).eval()
    scale_weights_(model)
    model.save_pretrained(folder, save_original_format=older)
    weights = load_file(folder / "model.safetensors")
    if older != any(name.startswith("visual.") for name in weights):
        renamed = {_renamed(name, older): weight for name, weight in weights.items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    tiny_processor().save_pretrained(folder)
    if flat:
        _flatten(folder / "config.json")
    return model


def _renamed(name: str, older: bool) -> str:
    pairs = [("model.visual.", "visual."), ("model.language_model.", "model.")]
    for new, old in pairs:
        before, after = (new, old) if older else (old, new)
        if name.startswith(before) and not name.startswith(after):
            return name.replace(before, after, 1)
    return name


def _flatten(path: Path) -> None:
    """As the first Qwen2.5-VL checkpoints have it: text fields at the top level, an older rotary entry."""
    config = json.loads(path.read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text.pop("model_type")
    text.pop("layer_types")
    config |= text
    config["rope_theta"] = rope["rope_theta"]
    config["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    path.write_text(json.dumps(config))
