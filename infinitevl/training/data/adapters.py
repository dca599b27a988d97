"""One adapter for each form in which the paper's public sources keep their rows: a row becomes messages."""

import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from infinitevl.errors import InputError
from infinitevl.training.data.messages import field, split_places

# A row of captions holds no question; which of these it gets follows from its picture's address.
_ASK_FOR_CAPTION = (
    "Describe this image in detail.",
    "What does this picture show?",
    "Give a detailed description of the image.",
    "Write a long caption for this image.",
)
_CAP_QA_TURNS = re.compile(r"\[(USER|ASSISTANT)\]")


def texts(row: dict[str, Any]) -> dict[str, Any]:
    """FineVision, The Cauldron and Docmatix: `images`, and `texts` of user and assistant.

    All pictures belong to the conversation as a whole and stand before the first question; rows of text
    alone have none.
    """
    pairs = field(row, "texts", list, "")
    turns = []
    for i, pair in enumerate(pairs):
        asked, answer = (field(pair, key, str, f"texts[{i}].") for key in ("user", "assistant"))
        turns.append((asked.replace("<image>", "").strip(), answer.strip()))
    return _conversation(turns, row.get("images") or [])


def llava_onevision(row: dict[str, Any]) -> dict[str, Any]:
    """LLaVA-OneVision-1.5: `image` (or None) and `conversations`, whose turns say from and value or role and
    content, with None under the names that they do not use."""
    images = [] if row.get("image") is None else [row["image"]]
    messages = []
    for i, turn in enumerate(field(row, "conversations", list, "")):
        role, text = _llava_turn(turn, f"conversations[{i}].")
        content = split_places(text) if role == "user" else text
        messages.append({"role": role, "content": content})
    return {"messages": _with_missing_place(messages, "image", len(images)), "images": images}


def llava_video(row: dict[str, Any]) -> dict[str, Any]:
    """LLaVA-Video-178K: `video`, a path, and `conversations`, in which <image> stands for the video."""
    video = field(row, "video", str, "")
    messages = []
    for i, turn in enumerate(field(row, "conversations", list, "")):
        role, text = _llava_turn(turn, f"conversations[{i}].")
        content = split_places(text.replace("<image>", "<video>")) if role == "user" else text
        messages.append({"role": role, "content": content})
    return {"messages": _with_missing_place(messages, "video", 1), "videos": [video]}


def pixmo_cap(row: dict[str, Any]) -> dict[str, Any]:
    """PixMo-Cap: `image_url` and `caption`."""
    address = field(row, "image_url", str, "")
    question = _ASK_FOR_CAPTION[zlib.crc32(address.encode()) % len(_ASK_FOR_CAPTION)]
    return _conversation([(question, field(row, "caption", str, "").strip())], [address])


def pixmo_qa(row: dict[str, Any]) -> dict[str, Any]:
    """PixMo-AskModelAnything and PixMo-CapQA: `image_url`, `question` and `answer`.

    The question of the latter is a transcript, "[USER] ... [ASSISTANT] ... [USER] ... [ASSISTANT]", which the
    answer continues.
    """
    question = field(row, "question", str, "")
    answer = field(row, "answer", str, "").strip()
    said = [piece.strip() for piece in _CAP_QA_TURNS.split(question)]
    turns = [(question.strip(), answer)]
    if len(said) > 1:
        roles, spoken = said[1::2], [*said[2:-1:2], answer]
        if said[0] or said[-1] or roles != ["USER", "ASSISTANT"] * (len(roles) // 2):
            raise InputError(f"field question: {question[:80]!r} is no [USER] ... [ASSISTANT] transcript.")
        turns = list(zip(spoken[0::2], spoken[1::2], strict=True))
    return _conversation(turns, [field(row, "image_url", str, "")])


def pixmo_docs(row: dict[str, Any]) -> dict[str, Any]:
    """PixMo-Docs: `image`, and `questions` with lists of question and answer."""
    asked = field(row, "questions", dict, "")
    columns = [field(asked, key, list, "questions.") for key in ("question", "answer")]
    if len(columns[0]) != len(columns[1]) or not columns[0]:
        raise InputError(f"field questions: {len(columns[0])} questions, {len(columns[1])} answers.")
    if row.get("image") is None:
        raise InputError("field image: is missing.")
    return _conversation(list(zip(*columns, strict=True)), [row["image"]])


ADAPTERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    adapter.__name__: adapter
    for adapter in (texts, llava_onevision, llava_video, pixmo_cap, pixmo_qa, pixmo_docs)
}


def _conversation(turns: Sequence[tuple[str, str]], images: Sequence[Any]) -> dict[str, Any]:
    """Makes messages of questions and answers, all pictures before the first question."""
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        places = [{"type": "image"} for _ in images] if not messages else []
        messages.append({"role": "user", "content": [*places, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages, "images": list(images)}


def _llava_turn(turn: Any, path: str) -> tuple[str, str]:
    """Returns (role, text) of a turn in either of its two forms."""
    names = (
        ("from", "value") if isinstance(turn, dict) and turn.get("from") is not None else ("role", "content")
    )
    tag, text = (field(turn, name, str, path) for name in names)
    roles = {
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
        "system": "system",
    }
    if tag not in roles:
        raise InputError(f"field {path}{names[0]}: is {tag!r}; valid are {', '.join(roles)}.")
    return roles[tag], text


def _with_missing_place(messages: list[dict[str, Any]], kind: str, count: int) -> list[dict[str, Any]]:
    """Adds the one medium to the first question, where the row's text does not place it."""
    questions = [message for message in messages if message["role"] == "user"]
    has_place = any(part["type"] == kind for question in questions for part in question["content"])
    if count and not has_place and questions:
        questions[0]["content"] = [{"type": kind}, *questions[0]["content"]]
    return messages
