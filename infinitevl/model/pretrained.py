"""What transformers needs to know about every part of an InfiniteVL: start, load, save."""

import contextlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from infinitevl.config import InfiniteVLConfig, check_attention
from infinitevl.model.decoder import RotaryEmbedding
from infinitevl.model.delta_net import CausalConv1d, GatedDeltaNet
from infinitevl.model.fused import fusable, unfused
from infinitevl.model.layers import RMSNorm
from infinitevl.model.saving import saving_errors, whole_folder, write_model_card
from infinitevl.model.weights import (
    PREFIX_MAPPING,
    check_files,
    check_finite,
    check_loading,
    check_values,
    loading_errors,
)

# softplus(dt_bias) = 0.001 at the start of a new mixer.
_DT_BIAS_START = -6.907255
# What `save_pretrained` of transformers may be given by place after is_main_process.
_SAVE_ARGUMENTS = tuple(inspect.signature(PreTrainedModel.save_pretrained).parameters)[3:-1]


class InfiniteVLPreTrainedModel(PreTrainedModel):
    """Base of every part that transformers may load by itself."""

    config: InfiniteVLConfig
    config_class = InfiniteVLConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "video", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer", "VisionBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values", "state", "norm"]  # noqa: RUF012
    _supports_sdpa = True
    # Nothing that was read can be unread: transformers refuses assisted decoding of such a model by itself.
    _is_stateful = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, GatedDeltaNet):
            _start_mixer(module)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, RotaryEmbedding):
            module.reset_buffers_()
        else:
            super()._init_weights(module)

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, *args: Any, **kwargs: Any
    ) -> str:
        check_attention(attn_implementation)
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    @classmethod
    @torch.inference_mode(False)  # weights of inference mode could not be trained
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        strict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Load a folder or hub name; published folders load as they are, and no code of theirs runs.

        Args:
            pretrained_model_name_or_path: None where `config=` and `state_dict=` say everything.
            strict: refuse a checkpoint with missing or unexpected weights; False leaves them as they start.
            Everything else as in transformers.

        Raises:
            CheckpointError: names the weights that are missing, unexpected or of another shape.
        """
        name = "state_dict" if (given := pretrained_model_name_or_path) is None else given
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("key_mapping", PREFIX_MAPPING)
        kwargs.setdefault("ignore_mismatched_sizes", True)  # they are told below, by name
        with loading_errors(name):
            if given is not None and Path(given).is_dir():
                check_files(given)
            loaded: Any = super().from_pretrained(given, *model_args, output_loading_info=True, **kwargs)
        model, info = loaded
        if strict:
            check_loading(name, info)
            check_finite(name, model)
        return (model, info) if wants_info else model

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for layer in fusable(self):
            layer.check_whole("moved")  # before anything else has been
        return super()._apply(fn, recurse)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """Write configuration, weights (newer prefix) and a model card; everything as in transformers.

        All files are written aside and then take the place of older ones, except with `push_to_hub` and
        `distributed_checkpoint`.

        Raises:
            CheckpointError: the folder cannot be written, or a weight has no values (a model on the meta
                device). What was in the folder stays.
        """
        kwargs |= dict(zip(_SAVE_ARGUMENTS, args, strict=False))
        kwargs.setdefault("save_original_format", False)
        if kwargs.get("state_dict") is None:
            check_values(self)
        is_direct = kwargs.get("push_to_hub") or kwargs.get("distributed_checkpoint")
        with saving_errors(save_directory), contextlib.ExitStack() as stack:
            folder: Any = save_directory
            if not is_direct:
                folder = stack.enter_context(whole_folder(save_directory, kwargs.get("variant")))
            with unfused(self):
                super().save_pretrained(folder, is_main_process, **kwargs)
            if is_main_process and not (Path(save_directory) / "README.md").exists():
                write_model_card(folder, self.config)


def _start_mixer(mixer: GatedDeltaNet) -> None:
    """Start a new mixer: hardly any decay, every convolution the identity."""
    for gate in (mixer.a_proj, mixer.b_proj):
        init.zeros_(gate.weight)
    init.zeros_(mixer.A_log)
    init.constant_(mixer.dt_bias, _DT_BIAS_START)
    for conv in (mixer.q_conv1d, mixer.k_conv1d, mixer.v_conv1d):
        _start_identity(conv)


def _start_identity(conv: CausalConv1d) -> None:
    identity = torch.zeros_like(conv.weight)
    identity[..., -1] = 1
    init.copy_(conv.weight, identity)
