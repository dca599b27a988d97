"""Rows in LLaMA-Factory's `sharegpt` form, turned into messages."""

from dataclasses import dataclass
from typing import Any

from infinitevl.errors import InputError
from infinitevl.training.data.messages import field, listed, split_places


@dataclass(frozen=True)
class ShareGPT:
    """The names that a row's columns and roles have (LLaMA-Factory's `columns` and `tags`)."""

    messages: str = "conversations"
    system: str = "system"
    tools: str = "tools"
    images: str = "images"
    videos: str = "videos"
    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str = "observation"
    function_tag: str = "function_call"
    system_tag: str = "system"

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Converts a row to messages; each <image> and <video> in a question takes the next image or video.

        Answers are text, whatever is in them. Raises InputError that names the field.
        """
        if row.get(self.tools):
            raise InputError(f"field {self.tools}: descriptions of tools are not read. Leave such rows out.")
        turns = field(row, self.messages, list, "")
        messages = [self._message(turn, f"{self.messages}[{i}]") for i, turn in enumerate(turns)]
        if row.get(self.system):
            if messages and messages[0]["role"] == "system":
                raise InputError(f"field {self.system}: the first of {self.messages} is a system turn too.")
            messages.insert(0, {"role": "system", "content": field(row, self.system, str, "")})
        media = {"images": listed(row, self.images), "videos": listed(row, self.videos)}
        self._check_places(messages, media, row)
        return {"messages": messages, **media}

    def _message(self, turn: Any, path: str) -> dict[str, Any]:
        tag = field(turn, self.role_tag, str, f"{path}.")
        text = field(turn, self.content_tag, str, f"{path}.")
        if tag == self.user_tag:
            return {"role": "user", "content": split_places(text)}
        if tag == self.observation_tag:
            content = split_places(f"<tool_response>\n{text}\n</tool_response>")
            return {"role": "user", "content": content}
        if tag == self.assistant_tag:
            return {"role": "assistant", "content": text}
        if tag == self.function_tag:
            return {"role": "assistant", "content": f"<tool_call>\n{text}\n</tool_call>"}
        if tag == self.system_tag:
            return {"role": "system", "content": text}
        valid = (self.user_tag, self.assistant_tag, self.observation_tag, self.function_tag, self.system_tag)
        raise InputError(f"field {path}.{self.role_tag}: is {tag!r}; valid are {', '.join(valid)}.")

    def _check_places(
        self, messages: list[dict[str, Any]], media: dict[str, list[Any]], row: dict[str, Any]
    ) -> None:
        parts = [part for each in messages if isinstance(each["content"], list) for part in each["content"]]
        for kind, column in (("image", self.images), ("video", self.videos)):
            places, given = sum(part["type"] == kind for part in parts), len(media[f"{kind}s"])
            if places != given:
                raise InputError(
                    f"field {column}: {given} for {places} <{kind}> in the questions. Give one for each; "
                    f"the row has {sorted(map(str, row))}."
                )
