"""A conversation with pictures and videos; its past is a state, so each turn reads only what is new."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from infinitevl.engine.answers import Answer
from infinitevl.engine.base import Session, checked_engine
from infinitevl.engine.engine import Engine, unwrapped
from infinitevl.engine.sampling import Sampling
from infinitevl.errors import InputError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.processing.prompt.template import DEFAULT_SYSTEM

Content = str | Sequence[dict[str, Any]]
_GREEDY = Sampling()


class ChatSession(Session):
    """One conversation.

    Args:
        model, processor: as `infinitevl.load` returns them.
        system: text of the system turn; None for no such turn.
        max_length: capacity of full-attention layers in tokens, where there are any; default: the config's
            `max_position_embeddings`.

    `ChatSession.on(engine)` makes chats that share an engine with other chats and streams.

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
        """Open a chat in a slot of `engine`; close it at its end, or use it as a context manager.

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
        allow_private: bool = False,
    ) -> str:
        """Add a turn of the user, and answer it.

        Args:
            content: text, or parts {"type": "text" | "image" | "video", ...} with the keys of
                `process_vision_info` (`text`, `image`, `video`, `fps`, `max_pixels`, ...).
            max_new_tokens, temperature, top_p, seed: see `Sampling`. on_text: receives the text as it grows.
            allow_private: whether pictures and videos may come from addresses of a private network.

        Returns:
            The answer. Turn and answer become part of the conversation; after an error or an interrupt,
            neither does.

        Raises:
            InputError: empty content, or a picture or video that cannot be used.
            StateError: the turn does not fit into full-attention layers, or no slot is free.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, seed)
        return self.finish(self.begin(content, sampling, on_text, allow_private=allow_private))

    def begin(
        self,
        content: Content,
        sampling: Sampling = _GREEDY,
        on_text: Callable[[str], None] | None = None,
        *,
        allow_private: bool = False,
    ) -> Answer:
        """Start to answer a turn; `finish` waits for the answer. Several answers are generated together.

        Arguments and errors as in `say`.
        """
        if isinstance(content, str | Sequence) and not content:
            raise InputError("nothing was said: give text, or parts with text, pictures or videos.")
        system = None if self.slot.facts.num_tokens else self.system
        inputs = self.processor.turn_inputs(content, system=system, allow_private=allow_private)
        return self._begin(lambda slot: self.engine.read_prompt(slot, inputs), sampling, on_text, keep=True)

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
