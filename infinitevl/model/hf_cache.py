"""The state as `generate` of transformers expects to see a cache."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from infinitevl.errors import InputError, StateError
from infinitevl.state import StreamState

# Room of full-attention layers beyond the prompt where nobody chose a length.
_SPARE_TOKENS = 1024


class StateCache(Cache):
    """A thin face over a `StreamState`.

    Args:
        state: an existing state to continue, or None: allocated when the first tokens come.
        max_length: tokens that full-attention layers get room for; needed only where there are any.
        num_seen: columns of the attention mask that the state stands for (padding included).

    Raises:
        StateError: `crop`, which a memory cannot do: fork the state before what may have to be undone.
    """

    def __init__(
        self, state: StreamState | None = None, *, max_length: int | None = None, num_seen: int | None = None
    ):
        super().__init__(layers=[])
        self.state = state
        self.max_length = max_length
        self.num_seen = num_seen or 0
        if state is not None and num_seen is None:
            self.num_seen = int(state.length.max())

    def __len__(self) -> int:
        """Layers of the state; an empty cache is still a cache."""
        return 1 if self.state is None else len(self.state.layers)

    @property
    def is_compileable(self) -> bool:
        """`generate` must not compile the model around this cache."""
        return False

    @property
    def is_croppable(self) -> bool:
        """A memory matrix has no way back."""
        return False

    def room_for(self, num_tokens: int) -> int:
        """The length to allocate full-attention layers with."""
        return self.max_length or num_tokens + _SPARE_TOKENS

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the attention mask that were read."""
        return self.num_seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """No maximum, unless full-attention layers were given one."""
        return self.max_length or -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Key length and offset of a mask; the model builds its own masks from the state."""
        return self.num_seen + query_length, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row b becomes what row beam_idx[b] was."""
        if self.state is not None:
            self.state.copy_(self.state.select(beam_idx))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        if self.state is not None:
            rows = torch.arange(self.state.batch_size, device=self.state.length.device)
            self.state = self.state.select(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        if self.state is not None:
            self.state = self.state.select(indices)

    def reset(self) -> None:
        """Forget everything."""
        self.num_seen = 0
        if self.state is not None:
            self.state.reset_()

    def crop(self, tokens_to_remove: int) -> None:
        """Not possible."""
        raise StateError(
            "a constant-size state cannot be cropped; fork() it before what may have to be undone."
        )


def as_state_cache(past_key_values: object) -> StateCache | None:
    """The cache that `forward` was given, checked.

    Raises:
        InputError: a cache of another kind.
    """
    if past_key_values is None or isinstance(past_key_values, StateCache):
        return past_key_values
    if isinstance(past_key_values, StreamState):
        return StateCache(past_key_values)
    raise InputError(
        f"past_key_values is a {type(past_key_values).__name__}; InfiniteVL carries a StateCache (or a "
        "StreamState). Leave it out to start anew."
    )
