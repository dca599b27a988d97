"""The events of rules: kept for a while with their pictures, written to a log, and handed to who listens."""

import asyncio
import contextlib
import io
import json
import logging
import logging.handlers
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Event = dict[str, Any]
MAX_EVENTS = 256  # of a stream
MAX_PICTURES = 64  # of a stream
MAX_PICTURE_BYTES = 128 * 2**20  # of all streams
PICTURE_SIZE = 512  # pixels of the longer side
_MAX_WAITING = 256  # events that a slow listener may be behind
_LOG_BYTES = 16 * 2**20  # of the log's file, and of the one before it
logger = logging.getLogger(__name__)
_told = logging.getLogger("infinitevl.events")


@dataclass(eq=False)
class Listener:
    """Somebody who is told events as they come: of one stream, or of all of a key.

    queue: None in it means that no more will come.
    """

    owner: str
    stream: str | None
    queue: "asyncio.Queue[Event | None]"
    is_behind: bool = False

    def wants(self, owner: str, event: Event) -> bool:
        """Whether an event is for it."""
        return owner == self.owner and self.stream in (None, event["stream"])

    def put(self, event: Event | None) -> None:
        """Hand on an event; one who is too far behind gets no more, and can ask again from where it was."""
        if self.is_behind:
            return
        try:
            self.queue.put_nowait(event)
        except asyncio.QueueFull:
            self.is_behind = True
            self.queue.get_nowait()
            self.queue.put_nowait(None)


class EventLog:
    """The events of one server; all but `publish` in its event loop.

    Args:
        is_open: whether there is a stream of this name.
        folder: where `events.jsonl` is written; None writes none.
    """

    def __init__(self, is_open: Callable[[str], bool], folder: Path | None) -> None:
        self._is_open = is_open
        self._events: dict[str, deque[Event]] = {}
        self._pictures: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._num_pictures: Counter[str] = Counter()
        self._num_bytes = 0
        self._listeners: set[Listener] = set()
        self._writer = ThreadPoolExecutor(1, "events")  # one thread: events keep their order
        self._file = None if folder is None else _file_in(folder)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Take events, in the running loop."""
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Write what has come, and tell all listeners that no more will."""
        self._stopping.set()
        self._writer.shutdown()
        if self._file is not None:
            self._file.close()
        self.end_listening()

    def end_listening(self) -> None:
        """Tell all listeners that no more events will come, so that their connections end."""
        for listener in self._listeners:
            listener.put(None)

    def publish(self, owner: str, event: Event, image: np.ndarray) -> None:
        """Keep, log and hand out an event with its frame, uint8 [H, W, 3]: soon, and from any thread."""
        if not self._stopping.is_set():
            self._writer.submit(self._publish, owner, event, image)

    def _publish(self, owner: str, event: Event, image: np.ndarray) -> None:
        line = json.dumps(event, ensure_ascii=False)
        _told.info("%s", line)
        if self._file is not None:
            self._file.emit(logging.makeLogRecord({"msg": line}))
        picture = None
        try:
            picture = to_jpeg(image)
        except Exception:  # the event counts, with or without its picture
            logger.exception("the picture of %s is missing", event["id"])
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._deliver, owner, event, picture)

    def _deliver(self, owner: str, event: Event, picture: bytes | None) -> None:
        stream = event["stream"]
        if not self._is_open(stream):  # deleted meanwhile
            return
        self._events.setdefault(stream, deque(maxlen=MAX_EVENTS)).append(event)
        if picture is not None:
            self._keep_picture(stream, event["id"], picture)
        for listener in list(self._listeners):
            if listener.wants(owner, event):
                listener.put(event)

    def _keep_picture(self, stream: str, event: str, picture: bytes) -> None:
        self._pictures[stream, event] = picture
        self._num_pictures[stream] += 1
        self._num_bytes += len(picture)
        if self._num_pictures[stream] > MAX_PICTURES:
            self._drop_picture(next(key for key in self._pictures if key[0] == stream))
        while self._num_bytes > MAX_PICTURE_BYTES:
            self._drop_picture(next(iter(self._pictures)))

    def _drop_picture(self, key: tuple[str, str]) -> None:
        self._num_bytes -= len(self._pictures.pop(key))
        self._num_pictures[key[0]] -= 1

    def of(self, stream: str, after: str | None = None) -> list[Event]:
        """The newest events of a stream, oldest first: those after one that is still kept, else all."""
        events = list(self._events.get(stream, ()))
        place = next((index for index, event in enumerate(events) if event["id"] == after), -1)
        return events[place + 1 :]

    def picture(self, stream: str, event: str) -> bytes | None:
        """The frame of an event as a JPEG; None where it is not kept any more."""
        return self._pictures.get((stream, event))

    @contextlib.contextmanager
    def listening(self, owner: str, stream: str | None, after: str | None = None) -> Iterator[Listener]:
        """A listener that is told events until the block ends; of one stream first those after `after`."""
        listener = Listener(owner, stream, asyncio.Queue(_MAX_WAITING + MAX_EVENTS))
        if stream is not None and after is not None:
            for event in self.of(stream, after):
                listener.put(event)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def num_listeners(self, owner: str) -> int:
        """Of one key."""
        return sum(listener.owner == owner for listener in self._listeners)

    def forget(self, stream: str) -> None:
        """Drop all of a stream, and tell those who listen to it that no more will come."""
        self._events.pop(stream, None)
        for key in [key for key in self._pictures if key[0] == stream]:
            self._drop_picture(key)
        self._num_pictures.pop(stream, None)
        for listener in self._listeners:
            if listener.stream == stream:
                listener.put(None)


def to_jpeg(image: np.ndarray) -> bytes:
    """A frame, uint8 [H, W, 3], as a JPEG of at most 512 x 512 pixels."""
    picture = Image.fromarray(image)
    picture.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


def _file_in(folder: Path) -> logging.handlers.RotatingFileHandler:
    """The log as JSON lines; when it is full it becomes `events.jsonl.1`."""
    path = folder / "events.jsonl"
    path.touch(mode=0o600)
    return logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
