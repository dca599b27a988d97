"""Chat text and its token ids; what a user writes never becomes a special token."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from infinitevl.errors import InputError
from infinitevl.processing.settings import check_settings

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
MEDIA_KEYS = ("image", "image_url", "video", "url", "path", "base64")
KIND_OF_TYPE = {"text": "text", "image": "image", "image_url": "image", "video": "video"}

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
    check_text(text, "The text")
    backend = tokenizer.backend_tokenizer
    text = backend.normalizer.normalize_str(text) if backend.normalizer else text
    pieces = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer else [(text, None)]
    return [token.id for piece, _ in pieces for token in backend.model.tokenize(piece)]


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a special token; InputError if the tokenizer lacks it."""
    index = tokenizer.get_added_vocab().get(token)
    if index is None:
        raise InputError(f"The tokenizer has no special token {token}. Use one with those of Qwen2.5-VL.")
    return index


def turn_ids(
    tokenizer: PreTrainedTokenizerBase,
    content: str | Sequence[dict[str, Any]],
    system: str | None = DEFAULT_SYSTEM,
) -> list[int]:
    """Ids of a user's turn, from the system turn (None: without one) to the start of the assistant's.

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
    """Ids of what stands between an answer and the next turn."""
    return [token_id(tokenizer, END), *encode_text(tokenizer, "\n")]


def render(content: str | Sequence[dict[str, Any]]) -> str:
    """Content as the chat template shows it."""
    return content if isinstance(content, str) else "".join(_render_part(part) for part in content)


def _render_part(part: dict[str, Any]) -> str:
    pad = {"image": IMAGE_PAD, "video": VIDEO_PAD}.get(vision_kind(part) or "")
    return f"{VISION_START}{pad}{VISION_END}" if pad else part.get("text", "")


def vision_kind(part: dict[str, Any]) -> str | None:
    """ "image", "video", or None for a part of a message that is neither, in the template's order."""
    if part.get("type") == "image" or "image" in part or "image_url" in part:
        return "image"
    return "video" if part.get("type") == "video" or "video" in part else None


def special_strings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Every string that the tokenizer reads as one added token, longest first."""
    return sorted(tokenizer.get_added_vocab(), key=len, reverse=True)


def break_specials(text: str, specials: Iterable[str], mark: str = WORD_JOINER) -> str:
    """The text with `mark` after the first character of each special string in it, overlapping ones too."""
    return re.sub(f"(?={_any_of(specials)})(.)", rf"\1{mark}", text, flags=re.DOTALL)


def _any_of(specials: Iterable[str]) -> str:
    return "(?:" + ("|".join(re.escape(special) for special in specials) or "(?!)") + ")"


def unused_mark(messages: Any) -> str:
    """A private-use character that appears in no text of the messages."""
    used = set().union(*_texts(messages))
    return next(mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in used)


def _texts(value: Any) -> Iterator[str]:
    """All strings of messages, but those that name media."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from () if key in MEDIA_KEYS else _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def encode_chat(tokenizer: PreTrainedTokenizerBase, text: str, mark: str) -> list[int]:
    """Ids of a rendered chat: its special strings as tokens, those that `mark` breaks as plain text."""
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
    """Messages in which no text holds a special string, not even in parts that the template would join.

    Raises InputError for a message that is not a dict with a role and, as content, text or a list of parts,
    each of them text, a picture or a video, and for calls of tools that the template would leave out. `path`
    is what stands before a message's number in the error.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise InputError(f"field {path}: holds no message; {_VALID_MESSAGE}.")
    messages = [_checked_message(each, f"{path}[{i}]", template) for i, each in enumerate(messages)]
    return [protect(message, specials, mark) for message in messages]


_BESIDE_CONTENT = ("tool_calls", "function_call", "reasoning_content")
_VALID_MESSAGE = (
    "give {'role': 'user', 'content': text or a list of {'type': 'text' or 'image' or 'video', ...}}"
)


def _checked_message(message: Any, path: str, template: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InputError(f"field {path}: a message needs a role; {_VALID_MESSAGE}.")
    check_text(message["role"], f"field {path}.role")
    for key in (key for key in _BESIDE_CONTENT if message.get(key)):
        if not mentions(template, key):
            raise InputError(
                f"field {path}.{key}: the chat template has no place for it; put it into content."
            )
        if message.get("content") is None:
            message = {**message, "content": ""}
    check_content(message.get("content"), f"{path}.content")
    return message


def mentions(template: str, name: str) -> bool:
    """Whether a chat template uses a variable or key of this name."""
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def check_text(text: str, place: str) -> None:
    """InputError, which begins with `place`, for text with half of a character, which no file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place}: character {error.start} is half of one ({text[error.start]!r}, a lone surrogate); "
            "read the text as UTF-8, or leave it out."
        ) from error


def check_content(content: Any, path: str) -> None:
    """See that content is text or a list of parts, each of them text, a picture or a video.

    Raises InputError, which begins with the place of what it is about; `path` is the place of the content.
    """
    if isinstance(content, str):
        return check_text(content, f"field {path}")
    if not isinstance(content, list | tuple) or not all(isinstance(part, dict) for part in content):
        raise InputError(f"field {path}: is {type(content).__name__}; {_VALID_MESSAGE}.")
    for index, part in enumerate(content):
        _check_part(part, f"{path}[{index}]")


def _check_part(part: dict[str, Any], path: str) -> None:
    check_type(part, path)
    if vision_kind(part):
        return check_settings(part, path)
    if "text" not in part:
        raise InputError(f"field {path}: {sorted(part)} holds no text; give {{'type': 'text', 'text': ...}}.")
    if not isinstance(part["text"], str):
        raise InputError(f"field {path}.text: is {type(part['text']).__name__}; give a string.")
    check_text(part["text"], f"field {path}.text")


def check_type(part: dict[str, Any], path: str) -> None:
    """See that a part of a message, if it says its type, is of one there is and holds no other.

    Raises InputError, which begins with `path`, the part's place.
    """
    if "type" not in part:
        return
    kind = KIND_OF_TYPE.get(part["type"]) if isinstance(part["type"], str) else None
    if kind is None:
        raise InputError(f"field {path}.type: is {part['type']!r}; valid are text, image, video.")
    held = vision_kind(part) or "text"
    if held != kind:
        what = f"but the part holds {sorted(set(part) - {'type'})}"
        raise InputError(f"field {path}.type: is {part['type']!r}, {what}; give each part one type.")


def check_shown(content: Any, path: str) -> None:
    """See that every picture and video of content that `check_content` has seen is there to be looked at.

    Raises InputError, which begins with the part's place; `path` is the place of the content.
    """
    for index, part in enumerate([] if isinstance(content, str) else content):
        kind = vision_kind(part)
        if kind and all(part.get(key) is None for key in MEDIA_KEYS):
            valid = "give a path, an address or what it holds, there or as url, path or base64"
            raise InputError(f"field {path}[{index}].{kind}: is missing; {valid}.")


def protect(value: Any, specials: Sequence[str], mark: str) -> Any:
    """A value in whose texts, however deep, no special string is left; what names media stays as it is."""
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
    """Neighbouring text parts as one: a special string may be spread over them."""
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
