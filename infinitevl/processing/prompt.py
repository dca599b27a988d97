"""Chat text and its token ids; what a user writes never becomes a special token."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from infinitevl.errors import InputError

DEFAULT_SYSTEM = "You are a helpful assistant."
START, END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = (
    "<|endoftext|>",
    START,
    END,
    VISION_START,
    VISION_END,
    "<|vision_pad|>",
    IMAGE_PAD,
    VIDEO_PAD,
)

# Invisible and without width: put into a special string it leaves the text readable and the string plain.
WORD_JOINER = "\u2060"

# Every message is a turn between START and END; a chat without a system turn gets the default one; a
# picture or video leaves one placeholder, numbered in words if add_vision_id is set.
CHAT_TEMPLATE = """\
{%- set seen = namespace(pictures=0, videos=0) -%}
{%- macro vision(pad, label, number) -%}
{%- if add_vision_id %}{{ label }} {{ number }}: {% endif -%}
<|vision_start|>{{ pad }}<|vision_end|>
{%- endmacro -%}
{%- if messages and messages[0].role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' ~ message.role ~ '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{%- set seen.pictures = seen.pictures + 1 -%}
{{- vision('<|image_pad|>', 'Picture', seen.pictures) -}}
{%- elif part.type == 'video' or 'video' in part -%}
{%- set seen.videos = seen.videos + 1 -%}
{{- vision('<|video_pad|>', 'Video', seen.videos) -}}
{%- elif 'text' in part -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of plain text: a special string in it is spelt out like any other, and no token is added.

    Needs a fast tokenizer; its settings are not touched, so threads may share it.
    """
    backend = tokenizer.backend_tokenizer
    text = backend.normalizer.normalize_str(text) if backend.normalizer else text
    pieces = (
        backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer else [(text, (0, len(text)))]
    )
    return [token.id for piece, _ in pieces for token in backend.model.tokenize(piece)]


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a special token; InputError if the tokenizer lacks it."""
    index = tokenizer.get_vocab().get(token)
    if index is None:
        raise InputError(
            f"The tokenizer has no token {token}. Use one with the special tokens of Qwen2.5-VL."
        )
    return index


def turn_ids(
    tokenizer: PreTrainedTokenizerBase, question: str, system: str | None = DEFAULT_SYSTEM
) -> list[int]:
    """Ids of a question as a chat turn, from the system turn (None: without one) to the assistant's start."""
    start, end = token_id(tokenizer, START), token_id(tokenizer, END)
    ids: list[int] = []
    turns = [("user", question)] if system is None else [("system", system), ("user", question)]
    for role, text in turns:
        ids += [start, *encode_text(tokenizer, f"{role}\n{text}"), end, *encode_text(tokenizer, "\n")]
    return [*ids, start, *encode_text(tokenizer, "assistant\n")]


def special_strings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Every string that the tokenizer reads as one added token, longest first."""
    return sorted(tokenizer.get_added_vocab(), key=len, reverse=True)


def break_specials(text: str, specials: Iterable[str], mark: str = WORD_JOINER) -> str:
    """The text with `mark` after the first character of each special string in it."""
    pattern = "|".join(re.escape(special) for special in specials)
    return re.sub(pattern, lambda found: found[0][0] + mark + found[0][1:], text) if pattern else text


def join_specials(text: str, specials: Iterable[str], mark: str) -> str:
    """The text that `break_specials` got."""
    for special in specials:
        text = text.replace(special[0] + mark + special[1:], special)
    return text


def unused_mark(texts: Sequence[str]) -> str:
    """A private-use character that is in none of the texts."""
    used = set().union(*texts)
    return next(mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in used)


def encode_chat(tokenizer: PreTrainedTokenizerBase, text: str, mark: str) -> list[int]:
    """Ids of a rendered chat: its special strings as tokens, those that `mark` breaks as plain text."""
    specials = special_strings(tokenizer)
    added = tokenizer.get_added_vocab()
    pattern = "(" + "|".join(re.escape(special) for special in specials) + ")"
    ids: list[int] = []
    for part in re.split(pattern, text) if specials else [text]:
        if part in added:
            ids.append(added[part])
        elif part:
            ids += encode_text(tokenizer, join_specials(part, specials, mark))
    return ids


def protect_messages(messages: Sequence[dict[str, Any]], specials: Sequence[str], mark: str) -> list[dict]:
    """Messages in which no text holds a special string, not even in parts that the template would join."""
    return [{key: _protect(value, specials, mark) for key, value in message.items()} for message in messages]


def _protect(value: Any, specials: Sequence[str], mark: str) -> Any:
    if isinstance(value, str):
        return break_specials(value, specials, mark)
    if isinstance(value, list | tuple):
        return [
            {**part, "text": break_specials(part["text"], specials, mark)} if _is_text(part) else part
            for part in _join_texts(value)
        ]
    return value


def _join_texts(parts: Iterable[Any]) -> list[Any]:
    """Neighbouring text parts as one: a special string may be spread over them."""
    joined: list[Any] = []
    for part in parts:
        if _is_text(part) and joined and _is_text(joined[-1]):
            joined[-1] = {**joined[-1], "text": joined[-1]["text"] + part["text"]}
        else:
            joined.append(part)
    return joined


def _is_text(part: Any) -> bool:
    kinds = ("image", "image_url", "video")
    return (
        isinstance(part, dict)
        and isinstance(part.get("text"), str)
        and part.get("type", "text") == "text"
        and not any(kind in part for kind in kinds)
    )
