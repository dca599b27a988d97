"""A conversation about text, pictures and videos whose past is a state: each turn reads only what is new."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from infinitevl.engine.answers import Answer
from infinitevl.engine.base import Session, checked_engine
from infinitevl.engine.engine import Engine, unwrapped
from infinitevl.engine.sampling import Sampling
from infinitevl.errors import InputError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.processing.prompt import DEFAULT_SYSTEM

Content = str | Sequence[dict[str, Any]]
_GREEDY = Sampling()


class ChatSession(Session):
    """One conversation.

    Args:
        model, processor: as `infinitevl.load` returns them.
        system: text of the system turn; None for no such turn.
        max_length: tokens that full-attention layers get room for, where there are any; by default as many as
            the config names (`max_position_embeddings`).

    Many chats on one model, beside streams: `ChatSession.on(engine)`.

    Raises:
        StateError: full-attention layers with an unusable `max_length`.
    """

    kind = "chat"
    _settings = ("kind", "system")
    keep_turns = True

    def __init__(
        self,
        model: InfiniteVLForConditionalGeneration,
        processor: Any,
        *,
        system: str | None = DEFAULT_SYSTEM,
        max_length: int | None = None,
    ):
        if max_length is None:
            max_length = unwrapped(model).config.text_config.max_position_embeddings
        self._start(Engine(model, processor, max_length=max_length), system, is_alone=True)

    @classmethod
    def on(cls, engine: Engine, *, system: str | None = DEFAULT_SYSTEM) -> "ChatSession":
        """A chat in a slot of `engine`, to be closed when it ends (or use it as a context manager).

        Raises:
            StateError: all slots are taken.
        """
        chat = cls.__new__(cls)
        chat._start(checked_engine(engine), system, is_alone=False)
        return chat

    def _start(self, engine: Engine, system: str | None, is_alone: bool) -> None:
        self.system = system
        self._enter(engine, is_alone)

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
            StateError: full-attention layers have no room for the turn, or the engine no free slot.
        """
        return self.finish(self.begin(content, Sampling(max_new_tokens, temperature, top_p, seed), on_text))

    def begin(
        self, content: Content, sampling: Sampling = _GREEDY, on_text: Callable[[str], None] | None = None
    ) -> Answer:
        """Start to answer a turn; `finish` waits for the answer, together with others that are under way.

        Arguments and errors as in `say`.
        """
        if not content:
            raise InputError("nothing was said: give text, or parts with text, pictures or videos.")
        system = None if self.slot.facts.num_tokens else self.system
        inputs = self.processor.turn_inputs(content, system=system)
        return self._begin(lambda slot: self.engine.read_prompt(slot, inputs), sampling, on_text)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: InfiniteVLForConditionalGeneration, processor: Any
    ) -> "ChatSession":
        """Continue a saved chat on this model's device and in its dtype.

        Raises:
            StateError: not a state of a chat, damaged, or of another model.
        """
        state, settings = cls._saved(path, model)
        size = tuple(state.span.waiting.shape[2:])  # of the engine that it lived in beside streams
        beside: dict[str, Any] = {"mode": "video", "frame_size": size} if all(size) else {}
        chat = cls.__new__(cls)
        engine = Engine(model, processor, max_length=state.max_length, **beside)
        chat._start(engine, settings["system"], is_alone=True)
        chat._fill(state)
        return chat
