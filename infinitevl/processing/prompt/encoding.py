"""Encodes chat text as token ids; what a user writes never becomes a special token."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from infinitevl.errors import InputError
from infinitevl.processing.prompt.messages import (
    MEDIA_KEYS,
    VALID_MESSAGE,
    check_content,
    check_text,
    checked_message,
    vision_kind,
)
from infinitevl.processing.prompt.template import (
    CHAT_TEMPLATE,
    DEFAULT_SYSTEM,
    END,
    IMAGE_PAD,
    START,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
)

# An invisible character of no width. Inside a special string it makes it plain text that reads the same.
WORD_JOINER = "\u2060"


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encodes plain text: special strings in it are encoded as ordinary characters; adds no token.

    Needs a fast tokenizer. Does not change its settings, so threads may share it.
    """
    check_text(text, "The text")
    backend = tokenizer.backend_tokenizer
    text = backend.normalizer.normalize_str(text) if backend.normalizer else text
    pieces = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer else [(text, None)]
    return [token.id for piece, _ in pieces for token in backend.model.tokenize(piece)]


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Returns the id of a special token. Raises InputError if the tokenizer lacks it."""
    index = tokenizer.get_added_vocab().get(token)
    if index is None:
        raise InputError(f"The tokenizer has no special token {token}. Use one with those of Qwen2.5-VL.")
    return index


def turn_ids(
    tokenizer: PreTrainedTokenizerBase,
    content: str | Sequence[dict[str, Any]],
    system: str | None = DEFAULT_SYSTEM,
) -> list[int]:
    """Encodes a user's turn, from the system turn (None: without one) to the start of the assistant's.

    `content`: text, or parts as in a chat message; each picture or video is one pad between its two marks.
    Raises InputError, which names the part, for one that is neither text, a picture nor a video.
    """
    message = {"role": "user", "content": content}
    check_content(content, "content")
    check_text(system or "", "The system turn")
    mark = unused_mark([message, system])
    messages = protect_messages([message], special_strings(tokenizer), mark)
    if system is not None:
        system = break_specials(system, special_strings(tokenizer), mark)
        messages.insert(0, {"role": "system", "content": system})
    turns = [f"{START}{each['role']}\n{render(each['content'])}{END}\n" for each in messages]
    return encode_chat(tokenizer, "".join(turns) + f"{START}assistant\n", mark)


def end_of_turn_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids between an answer and the next turn."""
    return [token_id(tokenizer, END), *encode_text(tokenizer, "\n")]


def render(content: str | Sequence[dict[str, Any]]) -> str:
    """Renders content as the chat template does."""
    return content if isinstance(content, str) else "".join(_render_part(part) for part in content)


def _render_part(part: dict[str, Any]) -> str:
    pad = {"image": IMAGE_PAD, "video": VIDEO_PAD}.get(vision_kind(part) or "")
    return f"{VISION_START}{pad}{VISION_END}" if pad else part.get("text", "")


def special_strings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Lists the strings that the tokenizer reads as one added token, longest first."""
    return sorted(tokenizer.get_added_vocab(), key=len, reverse=True)


def break_specials(text: str, specials: Iterable[str], mark: str = WORD_JOINER) -> str:
    """Puts `mark` after the first character of each special string in a text, overlapping ones too."""
    return re.sub(f"(?={_any_of(specials)})(.)", rf"\1{mark}", text, flags=re.DOTALL)


def _any_of(specials: Iterable[str]) -> str:
    return "(?:" + ("|".join(re.escape(special) for special in specials) or "(?!)") + ")"


def unused_mark(messages: Any) -> str:
    """Returns a private-use character that no text of the messages contains."""
    used = set().union(*_texts(messages))
    return next(mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in used)


def _texts(value: Any) -> Iterator[str]:
    """Yields all strings of messages except those that name media."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from () if key in MEDIA_KEYS else _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def encode_chat(tokenizer: PreTrainedTokenizerBase, text: str, mark: str) -> list[int]:
    """Encodes a rendered chat: special strings as tokens, those that `mark` breaks as plain text."""
    added = tokenizer.get_added_vocab()
    ids: list[int] = []
    for part in re.split(f"({_any_of(special_strings(tokenizer))})", text):
        if part in added:
            ids.append(added[part])
        elif part:
            ids += encode_text(tokenizer, part.replace(mark, ""))
    return ids


def protect_messages(
    messages: Sequence[dict[str, Any]],
    specials: Sequence[str],
    mark: str,
    path: str = "messages",
    template: str = CHAT_TEMPLATE,
) -> list[dict]:
    """Checks messages, and breaks the special strings in their texts with `mark`, also across joined parts.

    Raises InputError for a message that is not a dict with a role and, as content, text or a list of parts,
    each of them text, a picture or a video, and for calls of tools that the template would leave out. `path`
    is what stands before a message's number in the error.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise InputError(f"field {path}: holds no message; {VALID_MESSAGE}.")
    messages = [checked_message(each, f"{path}[{i}]", template) for i, each in enumerate(messages)]
    return [protect(message, specials, mark) for message in messages]


def protect(value: Any, specials: Sequence[str], mark: str) -> Any:
    """Breaks the special strings in all texts of a nested value; what names media stays as it is."""
    if isinstance(value, str):
        return break_specials(value, specials, mark)
    if isinstance(value, list | tuple):
        return [protect(each, specials, mark) for each in _join_texts(value)]
    if isinstance(value, dict):
        return {
            key: each if key in MEDIA_KEYS else protect(each, specials, mark) for key, each in value.items()
        }
    return value


def _join_texts(parts: Iterable[Any]) -> list[Any]:
    """Joins neighbouring text parts: a special string may be spread over them."""
    joined: list[Any] = []
    for part in parts:
        if joined and _is_text(part) and _is_text(joined[-1]):
            joined[-1] = {**joined[-1], "text": joined[-1]["text"] + part["text"]}
        else:
            joined.append(part)
    return joined


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and isinstance(part.get("text"), str)
        and part.get("type", "text") == "text"
        and not any(key in part for key in MEDIA_KEYS)
    )
