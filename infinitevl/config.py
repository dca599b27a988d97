"""Sizes and settings of an InfiniteVL, read from and written to the published flat form.

On disk the text fields stand at the top level beside `vision_config`; in memory they live in `text_config`,
because every class of the model reads the part that concerns it.
"""

import copy
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from infinitevl.config_fields import check, check_ends, check_fields, with_fields
from infinitevl.errors import InputError

SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"
LAYER_TYPES = (SLIDING, FULL, LINEAR)

# Two names of one thing: three position axes with the angles of the field, not scaled.
_ROPE_TYPES = ("default", "mrope")

# torch's own attention in any case; "eager" asks for the same numbers without a kernel's name.
_ATTENTION = (None, "sdpa", "eager")
_PARTS = ("", "text_config", "vision_config")

# What a caller may give `from_pretrained` of a configuration that is about files, not about fields.
_PASSED_ON = (
    "code_revision",
    "commit_hash",
    "trust_remote_code",
    "local_files_only",
    "token",
    "use_auth_token",
)

# What published folders say and what must not take effect: these name code, kernels or habits of the
# published implementation.
_IGNORED_KEYS = ("use_cache", "attn_implementation", "_attn_implementation", "auto_map", "max_window_layers")


def hybrid_layer_types(num_layers: int, period: int = 4) -> list[str]:
    """Blocks of one sliding-window layer followed by `period - 1` Gated DeltaNets."""
    return [SLIDING if layer % period == 0 else LINEAR for layer in range(num_layers)]


class InfiniteVLVisionConfig(PreTrainedConfig):
    """Qwen2.5-VL's vision encoder and projector (arXiv 2502.13923, section 2.1)."""

    model_type = "infinite_vl_vision"
    base_config_key = "vision_config"

    depth: int = 32
    hidden_size: int = 1280
    num_heads: int = 16
    intermediate_size: int = 3420
    hidden_act: str = "silu"
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112
    fullatt_block_indexes: Sequence[int] = (7, 15, 23, 31)
    out_hidden_size: int = 2048
    tokens_per_second: int = 2
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("model_type", None)
        super().__post_init__(**kwargs)
        check_fields(self)
        self.fullatt_block_indexes = tuple(self.fullatt_block_indexes)
        check(self.hidden_act == "silu", f"vision hidden_act must be 'silu', not {self.hidden_act!r}")
        check(
            self.hidden_size % (4 * self.num_heads) == 0,
            f"vision hidden_size {self.hidden_size} is no multiple of 4 x num_heads = {4 * self.num_heads}",
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def merge_factor(self) -> int:
        """Side of one merged token in pixels: pictures are resized to multiples of it."""
        return self.patch_size * self.spatial_merge_size

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch: channels x temporal patch x patch height x patch width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


class InfiniteVLTextConfig(PreTrainedConfig):
    """The decoder: sliding-window attention, full attention and Gated DeltaNet layers in any order."""

    model_type = "infinite_vl_text"
    base_config_key = "text_config"

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 11008
    num_hidden_layers: int = 36
    layer_types: Sequence[str] = ()
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    max_position_embeddings: int = 128000
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    head_dim: int = 0
    sliding_window: int = 8192
    num_sink_tokens: int = 0
    attention_dropout: float = 0.0
    rope_theta: float = 1e6
    mrope_section: Sequence[int] = (16, 24, 24)
    num_linear_heads: int = 16
    num_linear_key_value_heads: int = 16
    linear_head_dim: int = 128
    expand_v: float = 2
    conv_size: int = 4
    norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 151643
    eos_token_id: int | list[int] | None = 151645
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.head_dim = self.head_dim or 0
        self.layer_types = self.layer_types or ()
        check_fields(self)
        check_ends(self.eos_token_id)
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.layer_types = list(self.layer_types or hybrid_layer_types(self.num_hidden_layers))
        self.mrope_section = list(self.mrope_section)
        self.pad_token_id = self.bos_token_id if self.pad_token_id is None else self.pad_token_id
        self._validate()

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in transformers; of a whole model's folder the part that concerns the decoder."""
        found, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if found.get("model_type") == InfiniteVLConfig.model_type:
            found = InfiniteVLConfig(**found).text_config.to_dict()
        return found, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; fields among the keywords are checked like those of the dictionary."""
        config_dict, kwargs = with_fields(config_dict, kwargs, set(cls.__dataclass_fields__))
        return super().from_dict(config_dict, **kwargs)

    def _validate(self) -> None:
        unknown = sorted(set(self.layer_types) - set(LAYER_TYPES))
        check(not unknown, f"unknown layer_types {unknown}; valid ones are {list(LAYER_TYPES)}")
        check(
            len(self.layer_types) == self.num_hidden_layers,
            f"layer_types names {len(self.layer_types)} layers of {self.num_hidden_layers}",
        )
        check(
            2 * sum(self.mrope_section) == self.head_dim,
            f"mrope_section {self.mrope_section} must sum to half of head_dim ({self.head_dim} / 2)",
        )
        check(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_attention_heads {self.num_attention_heads} must be a multiple of "
            f"num_key_value_heads {self.num_key_value_heads}",
        )
        check(
            self.num_linear_heads == self.num_linear_key_value_heads,
            "num_linear_key_value_heads must equal num_linear_heads: key heads are not shared here",
        )
        check(self.hidden_act == "silu", f"hidden_act must be 'silu', not {self.hidden_act!r}")
        check(
            self.attention_dropout == 0,
            f"attention_dropout is {self.attention_dropout}; attention drops nothing here, so it must be 0",
        )

    @property
    def key_dim(self) -> int:
        """Channels of all key heads of a Gated DeltaNet."""
        return self.num_linear_heads * self.linear_head_dim

    @property
    def linear_value_dim(self) -> int:
        """Width of one value head of a Gated DeltaNet."""
        return int(self.linear_head_dim * self.expand_v)

    @property
    def value_dim(self) -> int:
        """Channels of all value heads of a Gated DeltaNet."""
        return self.num_linear_heads * self.linear_value_dim

    @property
    def conv_channels(self) -> int:
        """Channels that the causal convolution of a Gated DeltaNet sees: queries, keys and values."""
        return 2 * self.key_dim + self.value_dim

    @property
    def num_window_slots(self) -> int:
        """Keys that a sliding-window layer stores of a stream: its sinks, and its window."""
        return self.num_sink_tokens + self.sliding_window

    @property
    def has_constant_state(self) -> bool:
        """Whether the state of a stream has the same size for ever (no full-attention layer)."""
        return FULL not in self.layer_types


def _text_field(name: str, doc: str) -> property:
    """A field of the text part that transformers looks for at the top level."""
    return property(
        lambda self: getattr(self.text_config, name),
        lambda self, value: setattr(self.text_config, name, value),
        doc=doc,
    )


class InfiniteVLConfig(PreTrainedConfig):
    """Configuration of an InfiniteVL.

    Built from the published flat dictionary, from `text_config=` and `vision_config=`, or from keyword
    arguments of either kind. `use_cache`, `attn_implementation`, `auto_map` and the vision part's
    `model_type` of published folders take no effect.

    Raises:
        CheckpointError: sizes that contradict each other; the message names them.
    """

    model_type = "infinite_vl"
    sub_configs = {"text_config": InfiniteVLTextConfig, "vision_config": InfiniteVLVisionConfig}  # noqa: RUF012
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012, a list: the Trainer adds one to it
    # Without a state every token would read the whole past again, whatever a folder says.
    use_cache = True

    text_config: InfiniteVLTextConfig = None  # type: ignore[assignment]
    vision_config: InfiniteVLVisionConfig = None  # type: ignore[assignment]
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        text = _pop_text_fields(kwargs)
        check_fields(self)
        for part in (self.text_config, self.vision_config):
            check(
                part is None or isinstance(part, dict | PreTrainedConfig),
                f"text_config and vision_config are objects, not {part!r}",
            )
        quantized = kwargs.get("quantization_config")
        check(
            not isinstance(quantized, int | float | str | list),
            f"quantization_config is {quantized!r}, which is no object",
        )
        if not isinstance(self.text_config, InfiniteVLTextConfig):
            text["tie_word_embeddings"] = self.tie_word_embeddings
            self.text_config = InfiniteVLTextConfig(**{**text, **(self.text_config or {})})
        if not isinstance(self.vision_config, InfiniteVLVisionConfig):
            self.vision_config = InfiniteVLVisionConfig(**(self.vision_config or {}))
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)
        if self.dtype is None:
            self.dtype = self.text_config.dtype
        self._validate()

    def _validate(self) -> None:
        check(
            self.vision_config.out_hidden_size == self.text_config.hidden_size,
            f"the projector's out_hidden_size {self.vision_config.out_hidden_size} must equal the decoder's "
            f"hidden_size {self.text_config.hidden_size}",
        )

    bos_token_id = _text_field("bos_token_id", "First token of an empty prompt.")
    eos_token_id = _text_field("eos_token_id", "Token or tokens that end an answer.")
    pad_token_id = _text_field("pad_token_id", "Token that fills shorter rows of a batch.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; keywords may name every field, also those of the decoder.

        The attn_implementation of a folder is ignored, that of a caller is checked.

        Raises:
            InputError: an `attn_implementation` among the keywords that this model does not have.
        """
        check_attention(kwargs.get("attn_implementation"))
        names = set(cls.__dataclass_fields__) | set(InfiniteVLTextConfig.__dataclass_fields__)
        names -= {*PreTrainedConfig.__dataclass_fields__, *cls.sub_configs}
        config_dict, kwargs = with_fields(config_dict, kwargs, names | {"tie_word_embeddings"})
        made = super().from_dict(config_dict, **kwargs)
        (made[0] if isinstance(made, tuple) else made)._validate()
        return made

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As in transformers.

        Raises:
            InputError: a keyword that is no field, unless an Auto class passes on what its caller gave it.
        """
        is_own_call = not kwargs.get("_from_auto") and not kwargs.get("return_unused_kwargs")
        if not is_own_call:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        made, unused = super().from_pretrained(
            pretrained_model_name_or_path, **{**kwargs, "return_unused_kwargs": True}
        )
        if unknown := sorted(name for name in unused if name not in _PASSED_ON and not name.startswith("_")):
            raise InputError(
                f"a configuration has no fields {unknown}. Check their names, or leave them out."
            )
        return made

    @classmethod
    def _dict_from_json_file(cls, json_file: Any) -> dict[str, Any]:
        found = super()._dict_from_json_file(json_file)
        check(isinstance(found, dict), f"{json_file} holds {type(found).__name__}, not an object")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The published flat form."""
        flat = super().to_dict()
        text = flat.pop("text_config")
        section = text.pop("mrope_section")
        common = set(PreTrainedConfig().to_dict())
        flat.update({key: value for key, value in text.items() if key not in common})
        if not flat["num_sink_tokens"]:
            del flat["num_sink_tokens"]  # the published form has no such field
        flat["rope_scaling"] = {"type": "default", "rope_type": "default", "mrope_section": section}
        flat["use_sliding_window"] = True
        flat["vision_config"] = {
            key: value
            for key, value in flat["vision_config"].items()
            if key not in common or key in ("dtype", "model_type")
        }
        return flat

    def to_diff_dict(self) -> dict[str, Any]:
        """The same as `to_dict` without what every configuration of transformers has at its default."""
        default = PreTrainedConfig().to_dict()
        flat = self.to_dict()
        flat.pop("_name_or_path", None)
        kept = {key: value for key, value in flat.items() if key not in default or value != default[key]}
        return {**kept, "transformers_version": flat["transformers_version"]}


def _pop_text_fields(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take the decoder's fields of a flat dictionary out of `kwargs`."""
    for key in _IGNORED_KEYS:
        kwargs.pop(key, None)
    check(
        kwargs.pop("use_sliding_window", True),
        "use_sliding_window: false; name full_attention in layer_types",
    )
    rope: Any = copy.copy(kwargs.pop("rope_parameters", None) or kwargs.pop("rope_scaling", None) or {})
    kwargs.pop("rope_scaling", None)
    check(isinstance(rope, dict), f"rope_scaling is {rope!r}, which is no object")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    check(
        rope_type in _ROPE_TYPES,
        f"rope_scaling of type {rope_type!r} is not known; valid ones are {list(_ROPE_TYPES)}",
    )
    if "mrope_section" in rope:
        kwargs.setdefault("mrope_section", rope["mrope_section"])
    if "rope_theta" in rope:
        kwargs.setdefault("rope_theta", rope["rope_theta"])
    names = set(InfiniteVLTextConfig.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)
    text = {key: kwargs.pop(key) for key in list(kwargs) if key in names}
    text["dtype"] = kwargs.get("torch_dtype", kwargs.get("dtype"))
    return text


def check_attention(wanted: object) -> None:
    """See that attention can be computed as the caller of `from_pretrained` wants it.

    Args:
        wanted: a name, or transformers' dictionary of names for the parts of the model.

    Raises:
        InputError: an implementation that this model does not have, or a part that it does not have.
    """
    by_part = wanted if isinstance(wanted, dict) else {"": wanted}
    for part, name in by_part.items():
        if part not in _PARTS or not isinstance(name, str | None) or name not in _ATTENTION:
            raise InputError(
                f"attn_implementation={wanted!r} is not available: this model calls torch's "
                "scaled_dot_product_attention, which picks the fastest kernel that it has itself. Leave the "
                f"keyword out, or give 'sdpa' (or a dictionary of it for the parts {', '.join(_PARTS[1:])})."
            )
