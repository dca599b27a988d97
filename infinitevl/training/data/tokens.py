"""Tokenizes conversations, and marks the tokens that are learned."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infinitevl.config import InfiniteVLConfig
from infinitevl.errors import InfiniteVLError, InputError
from infinitevl.model.positions import TEXT, prompt_positions, token_kinds
from infinitevl.processing.processor.call_options import CallOptions
from infinitevl.processing.processor.processor import InfiniteVLProcessor
from infinitevl.processing.processor.vision_info import VIDEO_MIN_TOKENS
from infinitevl.processing.prompt.encoding import (
    encode_chat,
    encode_text,
    end_of_turn_ids,
    protect_messages,
    render,
    special_strings,
    token_id,
    unused_mark,
)
from infinitevl.processing.prompt.template import DEFAULT_SYSTEM, START
from infinitevl.training.data.messages import Sample
from infinitevl.training.losses import IGNORED

_LEAST_FRAME_PIXELS = VIDEO_MIN_TOKENS * 28 * 28
_MEDIA = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")


@dataclass(frozen=True)
class Tokens:
    """One sample of T tokens.

    input_ids, labels: int64 [T]; a label is the token itself where it is learned, and IGNORED elsewhere.
    position_ids: int64 [3, T]. The media are as `forward` takes them, None where there are none.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None
    pixel_values_videos: Tensor | None = None
    video_grid_thw: Tensor | None = None
    second_per_grid_ts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def media(self) -> dict[str, Tensor]:
        """Returns the media that there are, by name."""
        return {name: value for name in _MEDIA if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Limits:
    """How large a sample may be; settings of a part itself come first.

    max_tokens: of a whole sample. min_pixels, max_pixels: of a picture. fps, max_frames: of a video.
    max_frame_pixels: of a video's frame. None: as the processor does.
    """

    max_tokens: int
    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: float | None = None
    max_frames: int | None = None
    max_frame_pixels: int | None = None

    def settings(self, kind: str) -> dict[str, Any]:
        """Returns the settings of a part that has none of its own."""
        wanted: dict[str, Any] = {}
        if kind == "image":
            wanted = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        elif kind == "video":
            wanted = {"fps": self.fps, "max_frames": self.max_frames, "max_pixels": self.max_frame_pixels}
            if self.max_frame_pixels is not None:  # frames have a least size of their own, which is not small
                wanted["min_pixels"] = min(_LEAST_FRAME_PIXELS, self.max_frame_pixels // 2)
        return {key: value for key, value in wanted.items() if value is not None}


class TokenWriter:
    """Turns samples into tokens, by the chat template and the positions of chats."""

    def __init__(self, processor: InfiniteVLProcessor, config: InfiniteVLConfig, limits: Limits):
        self.processor, self.config, self.limits = processor, config, limits
        self.tokenizer = processor.tokenizer
        self.specials = special_strings(self.tokenizer)
        self.pads = {config.image_token_id, config.video_token_id}
        self.start_id = token_id(self.tokenizer, START)
        self.end_of_turn = end_of_turn_ids(self.tokenizer)

    def write(self, sample: Sample) -> Tokens:
        """Tokenizes a sample.

        Raises:
            InputError: it cannot be read, or not be made tokens of; names the sample.
        """
        try:
            return self._write(sample.messages)
        except InfiniteVLError as error:
            raise InputError(f"{sample.where}: {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # of a library that decodes: one sample must not end a run of many
            raise InputError(f"{sample.where}: {type(error).__name__}: {error}") from error

    def _write(self, messages: list[dict[str, Any]]) -> Tokens:
        messages = [_with_settings(message, self.limits) for message in messages]
        if messages[0]["role"] != "system":
            messages = [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]
        ids, is_learned = self._turns(messages)
        _check_length(len(ids), self.limits.max_tokens)
        inputs = self.processor.assemble_chat([ids], messages, CallOptions(return_tensors="pt"))
        input_ids = inputs["input_ids"][0]
        _check_length(len(input_ids), self.limits.max_tokens)
        media = {name: inputs[name] for name in _MEDIA if name in inputs}
        return Tokens(
            input_ids, self._labels(input_ids, is_learned), self._positions(input_ids, media), **media
        )

    def _turns(self, messages: list[dict[str, Any]]) -> tuple[list[int], list[bool]]:
        """Returns ids with one pad for each medium, and for each token of text whether it is learned."""
        ids: list[int] = []
        is_learned: list[bool] = []
        for message in messages:
            is_answer = message["role"] == "assistant"
            head, body = self._head_and_body(message)
            ids += [*head, *body, *self.end_of_turn]
            num_learned = 1 + sum(token not in self.pads for token in body)  # the end of an answer as well
            is_learned += [False] * len(head) + [is_answer] * num_learned
            is_learned += [False] * (len(self.end_of_turn) - 1)
        return ids, is_learned

    def _head_and_body(self, message: dict[str, Any]) -> tuple[list[int], list[int]]:
        """Returns the ids before a turn's content, and those of the content.

        An answer is spelt apart from its head, because a chat gives the head and asks for the rest; every
        other turn is spelt in one piece, as the template is.
        """
        mark = unused_mark([message])
        (protected,) = protect_messages([message], self.specials, mark)
        text = render(protected["content"])
        head = encode_text(self.tokenizer, f"{message['role']}\n")
        if message["role"] == "assistant":
            return [self.start_id, *head], encode_chat(self.tokenizer, text, mark)
        whole = encode_chat(self.tokenizer, f"{message['role']}\n{text}", mark)
        return [self.start_id], whole

    def _labels(self, input_ids: Tensor, is_learned: list[bool]) -> Tensor:
        """Labels the expanded ids: `is_learned` counts tokens of text alone, without the pads of media."""
        learned = torch.zeros_like(input_ids, dtype=torch.bool)
        is_text = token_kinds(input_ids, self.config) == TEXT
        learned[is_text] = torch.tensor(is_learned)
        return input_ids.masked_fill(~learned, IGNORED)

    def _positions(self, input_ids: Tensor, media: dict[str, Tensor]) -> Tensor:
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        items = {name: media[name] for name in names if name in media}
        kinds = token_kinds(input_ids, self.config)[None]
        positions, _ = prompt_positions(kinds, torch.zeros(1, dtype=torch.int64), self.config, **items)
        return positions[:, 0]


def _with_settings(message: dict[str, Any], limits: Limits) -> dict[str, Any]:
    content = [_limited(part, limits.settings(part["type"])) for part in message["content"]]
    return {**message, "content": content}


def _limited(part: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    if "nframes" in part:
        settings = {key: value for key, value in settings.items() if key not in ("fps", "max_frames")}
    return {**settings, **part}


def _check_length(num_tokens: int, most: int) -> None:
    if num_tokens > most:
        raise InputError(
            f"has at least {num_tokens} tokens, more than {most}. Shorten it, or raise max_tokens."
        )
