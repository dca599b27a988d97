"""The variants of attention in which the same weights run: streaming, sliding, full."""

from infinitevl.config import FULL, SLIDING, InfiniteVLConfig
from infinitevl.errors import InputError

VARIANTS = STREAMING, SLIDING_WINDOW, FULL_ATTENTION = "streaming", "sliding", "full"

# Of the paper's second version (equation 8), for layers that keep at least so many keys.
PUBLISHED_SINKS, PUBLISHED_WINDOW = 256, 2048
# A choice of ours for smaller ones: the share of a layer's keys that become sinks.
_SHARE = 4


def check_variant(name: object) -> None:
    """See that a variant has this name.

    Raises:
        InputError: it has not; says which there are.
    """
    if name not in VARIANTS:
        raise InputError(
            f"attention is {name!r}; give one of {', '.join(VARIANTS)}, or None for the folder's."
        )


def apply_variant_(config: InfiniteVLConfig, name: str) -> None:
    """Change the attention layers of a configuration; a model that is saved with it keeps them.

    streaming: sinks that are never forgotten, and a window. The published 256 and 2048 where layers keep so
    many keys; else a quarter of the keys become sinks, so that the state stays as large. Layers that have
    sinks stay as they are.
    sliding: a window alone, of as many keys as the layers keep.
    full: a window of `max_position_embeddings` tokens: full attention up to that length.

    Layers of kind `full_attention` keep all keys; in the first two variants they become such layers.

    Raises:
        InputError: there is no such variant.
    """
    check_variant(name)
    text = config.text_config
    if name == FULL_ATTENTION:
        text.num_sink_tokens, text.sliding_window = 0, text.max_position_embeddings
        return
    text.layer_types = [SLIDING if kind == FULL else kind for kind in text.layer_types]
    kept = text.num_window_slots
    if name == SLIDING_WINDOW:
        text.num_sink_tokens, text.sliding_window = 0, kept
    elif not text.num_sink_tokens:
        sinks = PUBLISHED_SINKS if kept >= PUBLISHED_SINKS + PUBLISHED_WINDOW else kept // _SHARE
        window = PUBLISHED_WINDOW if sinks == PUBLISHED_SINKS else kept - sinks
        text.num_sink_tokens, text.sliding_window = sinks, window
