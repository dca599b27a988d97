"""POST /v1/chat/completions and GET /v1/models, as OpenAI's API has them."""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from infinitevl.server.context import Context, Owner, Parts, owner_of
from infinitevl.server.errors import ApiError, invalid
from infinitevl.server.jobs import Job, Piece
from infinitevl.server.sampling import check_offered, samplings_of, stops_of
from infinitevl.server.schemas import ChatRequest
from infinitevl.server.sse import cancelled_if_gone, streamed

router = APIRouter(prefix="/v1", dependencies=[Depends(owner_of)])


@router.get("/models")
async def models(context: Parts) -> dict[str, Any]:
    """The model that this server runs."""
    return {"object": "list", "data": [_model(context)]}


@router.get("/models/{name:path}")
async def model(name: str, context: Parts) -> dict[str, Any]:
    """The model of this name."""
    check_model(name, context)
    return _model(context)


@router.post("/chat/completions", response_model=None)
async def chat_completions(
    body: ChatRequest,
    request: Request,
    owner: Owner,
    context: Parts,
) -> dict[str, Any] | Response:
    """Answer a conversation about text, pictures and videos; streamed as server-sent events if asked."""
    check_model(body.model, context)
    check_offered(body)
    n = body.n or 1
    if n > context.worker.answering.max_slots:
        raise invalid(f"n is {n}; at most {context.worker.answering.max_slots} here.", "n")
    names = ("max_completion_tokens", "max_tokens")
    samplings, stops = samplings_of(body, context.limits, names, n), stops_of(body)
    inputs = await context.prompts.make(body)
    job = Job(samplings, stops, inputs, num_prompt_tokens=inputs["input_ids"].shape[1])
    context.worker.submit(job)
    answer = _Completion(job, context.settings.model)
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return streamed(answer.chunks(n, with_usage), lambda: context.worker.cancel(job))
    async with cancelled_if_gone(request, lambda: context.worker.cancel(job)):
        return await answer.whole(n)


def _model(context: Context) -> dict[str, Any]:
    return {
        "id": context.settings.model,
        "object": "model",
        "created": context.started,
        "owned_by": "infinitevl",
        "max_model_len": context.limits.prompt_tokens,
    }


def check_model(name: str, context: Context) -> None:
    """See that a request names the model that is served.

    Raises:
        ApiError: 404, it names another one.
    """
    if name != context.settings.model:
        raise ApiError(
            404,
            f"the model {name[:100]!r} is not served here; {context.settings.model!r} is.",
            param="model",
            code="model_not_found",
        )


class _Completion:
    """The events of a job in the shape of chat completions."""

    def __init__(self, job: Job, model: str) -> None:
        self._job, self._model = job, model
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    async def whole(self, n: int) -> dict[str, Any]:
        """The whole answer."""
        texts, reasons, num_tokens = [""] * n, [""] * n, 0
        async for event in self._job.events():
            if isinstance(event, Piece):
                texts[event.index] += event.text
            else:
                reasons[event.index] = event.finish_reason
                num_tokens += event.num_tokens
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return self._base("chat.completion") | {"choices": choices, "usage": self._usage(num_tokens)}

    async def chunks(self, n: int, with_usage: bool) -> AsyncIterator[dict[str, Any]]:
        """The answer in pieces."""
        num_tokens = 0
        for index in range(n):
            yield self._chunk(index, {"role": "assistant", "content": ""}, None, with_usage)
        async for event in self._job.events():
            if isinstance(event, Piece):
                yield self._chunk(event.index, {"content": event.text}, None, with_usage)
            else:
                num_tokens += event.num_tokens
                yield self._chunk(event.index, {}, event.finish_reason, with_usage)
        if with_usage:
            base = self._base("chat.completion.chunk")
            yield base | {"choices": [], "usage": self._usage(num_tokens)}

    def _chunk(
        self, index: int, delta: dict[str, str], reason: str | None, with_usage: bool
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if with_usage else {}
        return self._base("chat.completion.chunk") | {"choices": [choice]} | usage

    def _base(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _usage(self, num_tokens: int) -> dict[str, int]:
        return usage(self._job.num_prompt_tokens, num_tokens)


def usage(num_prompt: int, num_answer: int) -> dict[str, int]:
    """Tokens, as OpenAI's API counts them."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_answer,
        "total_tokens": num_prompt + num_answer,
    }
