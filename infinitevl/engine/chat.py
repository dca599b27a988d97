"""A conversation about text, pictures and videos whose past is a state: each turn reads only what is new."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from infinitevl.engine.engine import Engine
from infinitevl.engine.pool import Slot
from infinitevl.engine.sampling import Sampling
from infinitevl.engine.steps import without_gradients
from infinitevl.errors import InputError
from infinitevl.model.hf_cache import StateCache
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.processing.prompt import DEFAULT_SYSTEM, end_of_turn_ids
from infinitevl.state import StreamState

Content = str | Sequence[dict[str, Any]]


class ChatSession:
    """One conversation.

    Args:
        model, processor: as `infinitevl.load` returns them.
        system: text of the system turn; None for no such turn.
        max_length: tokens that full-attention layers get room for, where there are any; by default as many as
            the config names (`max_position_embeddings`).

    Raises:
        StateError: full-attention layers with an unusable `max_length`.
    """

    def __init__(
        self,
        model: InfiniteVLForConditionalGeneration,
        processor: Any,
        *,
        system: str | None = DEFAULT_SYSTEM,
        max_length: int | None = None,
    ):
        self.model, self.processor, self.system = model, processor, system
        if max_length is None:
            max_length = model.config.text_config.max_position_embeddings
        self.engine = Engine(model, processor, max_length=max_length)
        self._slot = self.engine.take()

    @property
    def state(self) -> StreamState:
        """All that was said so far, complete at the moment of asking."""
        self.engine.settle()
        return self._slot.state

    @without_gradients
    def say(
        self,
        content: Content,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """One turn of the user, and the answer.

        Args:
            content: text, or parts {"type": "text" | "image" | "video", ...} with the keys of
                `process_vision_info` (`text`, `image`, `video`, `fps`, `max_pixels`, ...).
            max_new_tokens, temperature, top_p, seed: see `Sampling`. on_text: receives the text as it grows.

        Returns:
            The answer; turn and answer become part of the conversation, whole or, after an error or an
            interrupt, not at all.

        Raises:
            InputError: empty content, or a picture or video that cannot be used.
            StateError: full-attention layers have no room for the turn.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, seed)
        if not content:
            raise InputError("nothing was said: give text, or parts with text, pictures or videos.")
        inputs = self.processor.turn_inputs(content, system=self.system if self._is_first else None)
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        slot = self.engine.fork(self._slot)
        try:
            answer = self.engine.begin(slot, self._read(slot, inputs), sampling, on_text)
            text = self.engine.finish(answer, to_the_end=True)
            self.engine.read(slot, end_of_turn_ids(self.processor.tokenizer))
            self.engine.replace_(self._slot, slot)
        finally:
            self.engine.release(slot)
        return text

    def _read(self, slot: Slot, inputs: dict[str, Tensor]) -> Tensor:
        """Take a turn into a slot: the last hidden state [1, C]."""
        with self.engine.runner.working():
            out = self.model.model(**inputs, past_key_values=StateCache(slot.state, num_seen=0))
        return out.last_hidden_state[:, -1]

    @property
    def _is_first(self) -> bool:
        return not int(self.state.length)
