"""POST /v1/chat/completions and GET /v1/models, as OpenAI's API has them."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from infinitevl.engine.logprobs import TokenLogprob, TokenNames
from infinitevl.server.context import Context, Owner, Parts, owner_of
from infinitevl.server.errors import ApiError, invalid
from infinitevl.server.jobs import Job, Piece
from infinitevl.server.sampling import check_offered, logprobs_of, samplings_of, stops_of
from infinitevl.server.schemas import ChatRequest
from infinitevl.server.sse import cancelled_if_gone, streamed

_LEAST_LOGPROB = -9999.0  # as OpenAI says "hardly ever", because JSON has no infinity
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
) -> Response:
    """Answer a conversation about text, pictures and videos; streamed as server-sent events if asked."""
    check_model(body.model, context)
    job = await begin(body, context)
    answer = _Completion(job, context)
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return streamed(answer.chunks(with_usage), lambda: context.worker.cancel(job))
    async with cancelled_if_gone(request, lambda: context.worker.cancel(job)):
        return JSONResponse(await answer.whole())


async def begin(body: ChatRequest, context: Context) -> Job:
    """Check a request, read its media, and let its answers wait for their turn.

    Raises:
        ApiError: 400, something that is not offered, cannot be used or is too much; 429, too many wait.
    """
    check_offered(body)
    n = body.n or 1
    if n > context.worker.answering.max_slots:
        raise invalid(f"n is {n}; at most {context.worker.answering.max_slots} here.", "n")
    names = ("max_completion_tokens", "max_tokens")
    samplings = samplings_of(body, context.limits, names, n, logprobs_of(body))
    stops = stops_of(body)
    inputs = await context.prompts.make(body)
    job = Job(samplings, stops, inputs, num_prompt_tokens=inputs["input_ids"].shape[1])
    context.worker.submit(job)
    return job


def _model(context: Context) -> dict[str, Any]:
    about = context.settings.description
    return ({} if about is None else {"description": about}) | {
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


@dataclass
class _Choice:
    """One choice of a whole answer."""

    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = ""


class _Completion:
    """The events of a job in the shape of chat completions."""

    def __init__(self, job: Job, context: Context) -> None:
        self._job, self._model = job, context.settings.model
        self._names = context.token_names
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    async def whole(self) -> dict[str, Any]:
        """The whole answer."""
        choices, num_tokens = [_Choice() for _ in self._job.choices], 0
        async for event in self._job.events():
            choice = choices[event.index]
            if isinstance(event, Piece):
                choice.text += event.text
                choice.logprobs += logprobs_json(event.logprobs, self._names)
            else:
                choice.finish_reason = event.finish_reason
                num_tokens += event.num_tokens
        shown = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._logprobs(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return self._base("chat.completion") | {"choices": shown, "usage": self._usage(num_tokens)}

    async def chunks(self, with_usage: bool) -> AsyncIterator[dict[str, Any]]:
        """The answer in pieces."""
        num_tokens = 0
        usage = {"usage": None} if with_usage else {}
        for index in range(len(self._job.choices)):
            yield self._chunk(index, {"role": "assistant", "content": ""}) | usage
        async for event in self._job.events():
            if isinstance(event, Piece):
                logprobs = self._logprobs(logprobs_json(event.logprobs, self._names))
                yield self._chunk(event.index, {"content": event.text}, logprobs=logprobs) | usage
            else:
                num_tokens += event.num_tokens
                yield self._chunk(event.index, {}, event.finish_reason) | usage
        if with_usage:
            base = self._base("chat.completion.chunk")
            yield base | {"choices": [], "usage": self._usage(num_tokens)}

    def _chunk(
        self, index: int, delta: dict[str, str], reason: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._base("chat.completion.chunk") | {"choices": [choice]}

    def _logprobs(self, content: list[dict[str, Any]]) -> dict[str, Any] | None:
        """In a choice; None where they were not asked for."""
        return None if self._job.samplings[0].logprobs is None else {"content": content, "refusal": None}

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


def logprobs_json(logprobs: Sequence[TokenLogprob], names: TokenNames) -> list[dict[str, Any]]:
    """Log-probabilities in OpenAI's shape; all bytes of an answer together are its text in UTF-8."""

    def shown(token: int, logprob: float) -> dict[str, Any]:
        text, data = names.named(token)
        return {"token": text, "logprob": max(_LEAST_LOGPROB, logprob), "bytes": data}

    return [
        shown(each.token, each.logprob) | {"top_logprobs": [shown(*other) for other in each.likeliest]}
        for each in logprobs
    ]
