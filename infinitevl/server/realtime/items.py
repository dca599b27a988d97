"""The items of a conversation: which wait to be asked, and which the model has read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from infinitevl.server.errors import ApiError, invalid, unsupported
from infinitevl.server.realtime.events import new_id
from infinitevl.server.realtime.schemas import InputImage, InputText, Message

# waiting: for the next response. asked: by the one under way. read: part of the model's memory. apart:
# answered, and not remembered.
State = Literal["waiting", "asked", "read", "apart"]
MOST_ITEMS = 256


@dataclass(eq=False)
class Item:
    """An item as the server keeps it: its pictures are gone once they are read.

    is_seen: one of its pictures went to the stream.
    """

    role: Literal["user", "system", "assistant"]
    content: list[dict[str, Any]]
    id: str = field(default_factory=lambda: new_id("item"))
    state: State = "waiting"
    status: Literal["completed", "incomplete", "in_progress"] = "completed"
    is_seen: bool = False

    @classmethod
    def of(cls, message: Message) -> "Item":
        """An item that a client made."""
        content = [_shown(part) for part in message.content]
        return cls(message.role, content, message.id or new_id("item"))

    @property
    def text(self) -> str:
        """Its texts, one a line."""
        return "\n".join(part["text"] for part in self.content if "text" in part)

    def note_seen(self) -> None:
        """Its pictures go to the stream; where it has no text, that is all of it."""
        self.is_seen = True
        if not self.text:
            self.state = "read"

    def as_json(self) -> dict[str, Any]:
        """What a client is told of it."""
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": self.status,
            "role": self.role,
            "content": [dict(part) for part in self.content],
        }


def _shown(part: InputText | InputImage) -> dict[str, Any]:
    if isinstance(part, InputText):
        return {"type": "input_text", "text": part.text}
    return {"type": "input_image", "detail": part.detail or "auto"}


class Conversation:
    """The newest items of a conversation, all that wait among them.

    Args:
        most_letters: of the user's texts that wait, and of the system's.
    """

    def __init__(self, most_letters: int) -> None:
        self.id = new_id("conv")
        self.items: dict[str, Item] = {}
        self._most_letters = most_letters

    @property
    def last_id(self) -> str | None:
        """The name of the newest item."""
        return next(reversed(self.items), None)

    def check(self, item: Item, previous: str | None) -> None:
        """See that an item can be appended.

        Raises:
            ApiError: 400, its name is taken, its place is not the end, or too much text waits.
        """
        if item.id in self.items:
            raise invalid(f"item.id {item.id[:100]!r} is taken: leave it out, or give another.", "item.id")
        is_last = previous in (None, self.last_id) or (previous == "root" and not self.items)
        if not is_last:
            raise unsupported(
                "previous_item_id", "what was read cannot be moved, so items come last; leave it out."
            )
        letters = len(item.text) + sum(len(each.text) for each in self.waiting(item.role))
        if letters > self._most_letters:
            text = f"{letters} letters would wait for a response; {self._most_letters} may: ask first."
            raise invalid(text, "item.content")

    def append(self, item: Item) -> str | None:
        """Add an item; the name of the one before it. Old ones that do not wait are forgotten."""
        previous = self.last_id
        self.items[item.id] = item
        extra = len(self.items) - MOST_ITEMS
        old = [each.id for each in self.items.values() if each.state in ("read", "apart")]
        for name in old[: max(0, extra)]:
            del self.items[name]
        return previous

    def before(self, item: Item) -> str | None:
        """The name of the item before this one; None where it is the first, or is here no more."""
        names = list(self.items)
        place = names.index(item.id) if item.id in self.items else 0
        return names[place - 1] if place else None

    def find(self, item_id: str) -> Item:
        """The item of this name.

        Raises:
            ApiError: 404, there is none, or no more.
        """
        item = self.items.get(item_id)
        if item is None:
            text = f"there is no item {item_id[:100]!r} among the last {MOST_ITEMS}."
            raise ApiError(404, text, param="item_id", code="item_not_found")
        return item

    def delete(self, item_id: str) -> None:
        """Take an item out that the model has not read.

        Raises:
            ApiError: 404, there is none; 409, the model has read it, or is reading it.
        """
        item = self.find(item_id)
        if item.state == "read" or item.is_seen:
            text = (
                f"the model has read {item_id[:100]!r}: its memory is a state of fixed size, from which no "
                "single item can be taken out. Only items that wait for a response can be deleted; to forget "
                "what was read, open another session."
            )
            raise ApiError(409, text, param="item_id", code="item_already_read")
        if item.state == "asked":
            text = f"{item_id[:100]!r} is being answered: cancel the response first."
            raise ApiError(409, text, param="item_id", code="item_in_use")
        del self.items[item_id]

    def waiting(self, role: str) -> list[Item]:
        """Items of a role with text that no response has answered."""
        items = self.items.values()
        return [each for each in items if each.state == "waiting" and each.role == role and each.text]


def mark(items: Sequence[Item], state: State) -> None:
    """Say of items how far they are."""
    for item in items:
        item.state = state
