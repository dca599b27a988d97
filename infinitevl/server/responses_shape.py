"""An answer in the shape of OpenAI's responses: whole, or as events that each have their number."""

import itertools
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from infinitevl.server.chat import logprobs_json
from infinitevl.server.context import Context
from infinitevl.server.errors import ApiError, as_api_error
from infinitevl.server.jobs import Job, Piece
from infinitevl.server.responses_schema import ResponsesRequest

_ERRORS = {400: "invalid_prompt", 429: "rate_limit_exceeded"}  # by status; any other is the server's
_PLACE = {"output_index": 0, "content_index": 0}


class ResponseShape:
    """The events of a job with one choice, as a response."""

    def __init__(self, request: ResponsesRequest, job: Job, context: Context) -> None:
        self._request, self._job = request, job
        self._model, self._names = context.settings.model, context.token_names
        self._id, self._item_id = f"resp_{secrets.token_hex(24)}", f"msg_{secrets.token_hex(24)}"
        self._created = int(time.time())
        self._serial = itertools.count()
        self._text, self._logprobs = "", list[dict[str, Any]]()
        self._num_tokens = 0
        self._is_cut = False

    async def whole(self) -> dict[str, Any]:
        """The whole response."""
        async for _ in self._pieces():
            pass
        return self._over()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The response in events; an error on the way is two of them, and the last ones."""
        try:
            async for event in self._events():
                yield event
        except Exception as caught:
            error = as_api_error(caught)
            about = {"code": error.code, "message": error.message, "param": error.param}
            yield self._event("error", **about)
            yield self._event("response.failed", response=self._failed(error))

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        begun = self._response("in_progress")
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        item, place = self._item("in_progress", is_empty=True), {"item_id": self._item_id, **_PLACE}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **place, part=self._part())
        async for delta, logprobs in self._pieces():
            yield self._event("response.output_text.delta", **place, delta=delta, logprobs=logprobs)
        part = self._part()
        text, logprobs = part["text"], part["logprobs"]
        yield self._event("response.output_text.done", **place, text=text, logprobs=logprobs)
        yield self._event("response.content_part.done", **place, part=part)
        over = self._over()
        yield self._event("response.output_item.done", output_index=0, item=over["output"][0])
        yield self._event(f"response.{over['status']}", response=over)

    async def _pieces(self) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
        """Text and log-probabilities as they come; they are kept too."""
        async for event in self._job.events():
            if isinstance(event, Piece):
                logprobs = logprobs_json(event.logprobs, self._names)
                self._text += event.text
                self._logprobs += logprobs
                yield event.text, logprobs
            else:
                self._num_tokens = event.num_tokens
                self._is_cut = event.finish_reason == "length"

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "sequence_number": next(self._serial), **fields}

    def _part(self) -> dict[str, Any]:
        """The text so far."""
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": [*self._logprobs]}

    def _item(self, status: str, is_empty: bool = False) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [] if is_empty else [self._part()],
        }

    def _over(self) -> dict[str, Any]:
        """The response at its end."""
        status = "incomplete" if self._is_cut else "completed"
        details = {"reason": "max_output_tokens"} if self._is_cut else None
        return self._response(status) | {
            "completed_at": None if self._is_cut else int(time.time()),
            "incomplete_details": details,
            "output": [self._item(status)],
            "usage": self._usage(),
        }

    def _failed(self, error: ApiError) -> dict[str, Any]:
        code = _ERRORS.get(error.status, "server_error")
        output = [self._item("incomplete")] if self._text else []
        return self._response("failed") | {
            "error": {"code": code, "message": error.message},
            "output": output,
        }

    def _usage(self) -> dict[str, Any]:
        num_prompt = self._job.num_prompt_tokens
        return {
            "input_tokens": num_prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": self._num_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_prompt + self._num_tokens,
        }

    def _response(self, status: str) -> dict[str, Any]:
        """A response without output, with what was asked for and what holds where nothing was."""
        request, sampling = self._request, self._job.samplings[0]
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": None,
            "metadata": request.metadata or {},
            "model": self._model,
            "output": [],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": request.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": request.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": float(sampling.temperature),
            "text": {"format": {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": [],
            "top_logprobs": sampling.logprobs or 0,
            "top_p": float(sampling.top_p),
            "truncation": "disabled",
            "usage": None,
            "user": request.user,
        }
