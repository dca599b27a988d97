"""Turns the messages of chats into tensors, in threads of their own: addresses may be slow, videos large."""

import asyncio
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infinitevl.errors import InfiniteVLError
from infinitevl.server.errors import ApiError, busy, invalid
from infinitevl.server.media import MediaReader
from infinitevl.server.schemas import ChatRequest
from infinitevl.server.settings import Limits

_NUM_THREADS = 16
_NUM_AT_ONCE = 2  # conversations whose pixels are in memory
_FILE = re.compile(r"\S*/video-\w+")  # the name that a video has on this machine is nobody's business


class PromptMaker:
    """Reads media and runs the processor. Slow addresses hold up chats at the most, never frames."""

    def __init__(self, processor: Any, media: MediaReader, limits: Limits) -> None:
        self._processor, self._media, self._limits = processor, media, limits
        self._threads = ThreadPoolExecutor(_NUM_THREADS, "prompts")
        self._pixels = threading.Semaphore(_NUM_AT_ONCE)
        self._num_under_way = 0

    async def make(self, request: ChatRequest) -> Any:
        """What the processor makes of a request's messages.

        Raises:
            ApiError: 400, messages that cannot be shown or are too long; 429, too many at once.
        """
        if self._num_under_way >= self._limits.waiting:
            raise busy(f"{self._num_under_way} chats are being prepared already; try again soon.")
        self._num_under_way += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._make, request)
        finally:
            self._num_under_way -= 1

    def _make(self, request: ChatRequest) -> Any:
        conversation = self._media.conversation(request)
        with conversation.files, self._pixels:
            messages = [message.opened() for message in conversation.messages]
            try:
                inputs = self._processor.apply_chat_template(
                    messages,
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                )
            except InfiniteVLError as error:
                raise invalid(_FILE.sub("the video", str(error)), "messages") from error
        length = inputs["input_ids"].shape[1]
        if length > self._limits.prompt_tokens:
            raise ApiError(
                400,
                f"the messages are {length} tokens, more than {self._limits.prompt_tokens}, the limit.",
                param="messages",
                code="context_length_exceeded",
            )
        return inputs

    def stop(self) -> None:
        """Take no more messages."""
        self._threads.shutdown(wait=False, cancel_futures=True)
