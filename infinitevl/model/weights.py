"""Checkpoints: the names of both published forms, what a good one holds, and which model a state is of."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from infinitevl.config import InfiniteVLConfig
from infinitevl.errors import CheckpointError

# The older published prefix -> ours (the newer one).
PREFIX_MAPPING = {
    r"^visual\.": "model.visual.",
    r"^model\.(?=layers\.|embed_tokens\.|norm\.)": "model.language_model.",
}

_FILE_DTYPES = ("F16", "BF16", "F32", "F64")  # as safetensors names them

# Values of each weight that enter a fingerprint: enough to tell fine-tunings apart, quick for 4 B parameters.
_SAMPLES = 1024

# Numbers of the configuration that enter a fingerprint beside its lists.
_TEXT_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
    "num_linear_heads",
    "num_linear_key_value_heads",
    "linear_head_dim",
    "linear_value_dim",
    "conv_size",
    "rope_theta",
    "rms_norm_eps",
    "norm_eps",
)
_VISION_SIZES = (
    "depth",
    "hidden_size",
    "num_heads",
    "intermediate_size",
    "in_channels",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "window_size",
    "out_hidden_size",
    "tokens_per_second",
)


@contextlib.contextmanager
def loading_errors(name: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what transformers and safetensors raise over missing or broken files into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _is_about_files(error):
            raise
        raise CheckpointError(
            f"{name} could not be loaded: {str(error).strip()} Check that config.json and every weight file "
            "are there and whole; download the folder again if in doubt."
        ) from error


def _is_about_files(error: Exception) -> bool:
    """Whether other files would help: not where memory ran out or a device failed."""
    device_errors = (torch.OutOfMemoryError, torch.AcceleratorError)
    return not isinstance(error, device_errors) and "memory" not in str(error)


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


def check_files(folder: str | os.PathLike[str]) -> None:
    """Refuse weights that are no numbers with a point, such as those of a quantized checkpoint.

    Raises:
        CheckpointError: names the file and the weight.
    """
    for path in sorted(Path(folder).glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _FILE_DTYPES:
                    raise CheckpointError(
                        f"{path} holds {name} as {dtype}; weights are {', '.join(_FILE_DTYPES)}. Give the "
                        "folder from before it was quantized or converted."
                    )


@torch.no_grad()
def check_finite(name: str | os.PathLike[str], model: nn.Module) -> None:
    """Refuse weights among which are NaN or infinities; those that lie elsewhere (meta) are not looked at.

    Raises:
        CheckpointError: names the weights.
    """
    found = [(key, weight) for key, weight in model.named_parameters() if weight.device.type != "meta"]
    broken = [key for key, weight in found if weight.numel() and not _is_finite(weight)]
    if broken:
        raise CheckpointError(
            f"{name} holds NaN or infinities in {len(broken)} weight(s): {', '.join(broken[:8])}. Its "
            "training diverged, or the file was damaged or converted to a format with too little range."
        )


def _is_finite(weight: Tensor) -> bool:
    if math.isfinite(weight.sum().item()):  # the quickest pass; in a narrow dtype a sum may overflow alone
        return True
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(weight))  # both ends of NaN are NaN


def fingerprint(model: nn.Module, config: InfiniteVLConfig) -> str:
    """What tells one model from another: its sizes and a sample of every weight.

    The same for weights in float32 and for these weights rounded to bfloat16, wherever accelerate keeps them,
    and for products in lower precision: a state may go on in another one.
    Float16 has no room for the smallest weights of a bfloat16 checkpoint, so it makes another model.

    Returns:
        32 hexadecimal digits.

    Raises:
        CheckpointError: a weight has no values anywhere (a model on the meta device).
    """
    digest = hashlib.sha256(json.dumps(_sizes(config)).encode())
    values = dict(_weights(model))
    for name in sorted(values):
        digest.update(name.encode())
        digest.update(_sample(values[name]).numpy().tobytes())
    return digest.hexdigest()[:32]


def _sizes(config: InfiniteVLConfig) -> list[Any]:
    """What the numbers of a state depend on besides the weights; JSON turns 2 and 2.0 into other texts."""
    text, vision = config.text_config, config.vision_config
    sizes = [getattr(text, name) for name in _TEXT_SIZES] + [getattr(vision, name) for name in _VISION_SIZES]
    if text.num_sink_tokens:  # without sinks, states saved before there were any go on
        sizes.append(text.num_sink_tokens)
    numbers = [float(size) for size in sizes if isinstance(size, int | float)]
    return [numbers, list(text.layer_types), list(text.mrope_section), sorted(vision.fullatt_block_indexes)]


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight with its values, also those that accelerate keeps on disk or in another memory."""
    for prefix, module in model.named_modules():
        hook: Any = getattr(module, "_hf_hook", None)  # accelerate's; absent where nothing was moved
        for name, weight in module.named_parameters(prefix, recurse=False, remove_duplicate=False):
            if weight.device.type == "meta" and hook is not None and hook.weights_map is not None:
                weight = hook.weights_map[name.removeprefix(f"{prefix}.")]
            _check_value(name, weight)
            yield name, weight


def check_values(model: nn.Module) -> None:
    """Refuse a model on the meta device, whose weights have shapes alone.

    Raises:
        CheckpointError: names a weight that has no values, here or where accelerate keeps it.
    """
    for prefix, module in model.named_modules():
        if getattr(module, "_hf_hook", None) is None:
            for name, weight in module.named_parameters(prefix, recurse=False):
                _check_value(name, weight)


def _check_value(name: str, weight: Tensor) -> None:
    if weight.device.type == "meta":
        raise CheckpointError(
            f"the weight {name} has no values: the model was built on the meta device. Load its weights with "
            "from_pretrained first."
        )


class Hollow(nn.Parameter):
    """A weight whose values are held elsewhere in few bits: of its own it has a shape and a sample.

    Whoever reads it in spite of that reads NaN.
    """

    sample: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> "Hollow":
        """What stays of `weight` [...]."""
        hollow = cls(weight.detach().new_full((), math.nan).expand(weight.shape), requires_grad=False)
        hollow.sample = _sample(weight)
        return hollow


def _sample(weight: Tensor) -> Tensor:
    if isinstance(weight, Hollow):
        return weight.sample
    flat = weight.detach().flatten()
    return flat[sample_indices(flat.numel()).to(flat.device)].to(torch.bfloat16).cpu().view(torch.int16)


def sample_indices(size: int) -> Tensor:
    """Indices spread evenly over 0 .. size - 1, both ends among them: int64 [at most 1024].

    Whole numbers throughout: float32 cannot name the last of more than 2^24 values.
    """
    count = min(_SAMPLES, size)
    return torch.arange(count) * (size - 1) // max(count - 1, 1)
