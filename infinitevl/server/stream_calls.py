"""The calls under /v1/streams."""

import asyncio
import math
import re
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response
from starlette.datastructures import UploadFile

from infinitevl.errors import InfiniteVLError
from infinitevl.processing.pictures.opening import open_image
from infinitevl.server.chat import usage
from infinitevl.server.context import Context, Owner, Parts, owner_of
from infinitevl.server.errors import ApiError, invalid
from infinitevl.server.events import to_jpeg
from infinitevl.server.jobs import Job, Piece
from infinitevl.server.sampling import samplings_of, stops_of
from infinitevl.server.schemas import AskRequest, StreamRequest
from infinitevl.server.sse import cancelled_if_gone, streamed
from infinitevl.server.streams import Settings, Stream
from infinitevl.server.worker import until_done

router = APIRouter(prefix="/v1/streams", dependencies=[Depends(owner_of)], tags=["streams"])
_FORMATS = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
CHOSEN_ID = "x-infinitevl-stream-id"  # set by the ingress of replicas, which lets nobody else set it
_PICTURE = {"type": "string", "format": "binary"}
_FRAMES_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/jpeg": {"schema": _PICTURE},
            "image/png": {"schema": _PICTURE},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "frame": {"type": "array", "items": _PICTURE},
                        "time": {"type": "array", "items": {"type": "number"}},
                    },
                    "required": ["frame"],
                }
            },
        },
    }
}
_FRAME_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": _PICTURE}}},
    404: {"description": "No frame was read yet, or none since the restart."},
}
_STATE_BODY = {
    "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": _PICTURE}}}
}


@router.post("")
async def open_stream(
    body: StreamRequest,
    owner: Owner,
    context: Parts,
    chosen_id: Annotated[str | None, Header(alias=CHOSEN_ID, include_in_schema=False)] = None,
) -> dict[str, Any]:
    """Open a stream."""
    mode = context.worker.engine.mode
    if body.mode not in (None, mode):
        raise invalid(f"mode is {body.mode!r}; streams of this server are {mode!r} (--mode).", "mode")
    if body.fps is not None and body.source is None:
        raise invalid("fps is for a source that the server follows; frames that are sent all count.", "fps")
    settings = Settings(owner, **body.model_dump(exclude={"mode"}))
    stream_id = chosen_id if context.settings.is_replica else None
    return (await context.registry.open(settings, stream_id)).as_json()


@router.get("")
async def list_streams(owner: Owner, context: Parts) -> dict[str, Any]:
    """The streams of this key, oldest first."""
    return {"object": "list", "data": [stream.as_json() for stream in context.registry.of(owner)]}


@router.get("/{stream_id}")
async def get_stream(stream_id: str, owner: Owner, context: Parts) -> dict[str, Any]:
    """What a stream has seen, and how large it is."""
    return context.registry.find(stream_id, owner).as_json()


@router.delete("/{stream_id}")
async def delete_stream(stream_id: str, owner: Owner, context: Parts) -> dict[str, Any]:
    """Close a stream and forget it."""
    await context.registry.close(context.registry.find(stream_id, owner))
    return {"id": stream_id, "object": "stream.deleted", "deleted": True}


@router.post("/{stream_id}/fork")
async def fork_stream(stream_id: str, owner: Owner, context: Parts) -> dict[str, Any]:
    """Another stream that has seen the same."""
    return (await context.registry.fork(context.registry.find(stream_id, owner))).as_json()


@router.get("/{stream_id}/state", response_class=Response)
async def get_state(stream_id: str, owner: Owner, context: Parts) -> Response:
    """The stream as one signed safetensors file."""
    data = await context.registry.state(context.registry.find(stream_id, owner))
    name = f'attachment; filename="{stream_id}.safetensors"'
    return Response(data, media_type="application/octet-stream", headers={"content-disposition": name})


@router.put("/{stream_id}/state", openapi_extra=_STATE_BODY)
async def put_state(stream_id: str, request: Request, owner: Owner, context: Parts) -> dict[str, Any]:
    """Let a stream go on from a state that was saved; the body is the file."""
    stream = context.registry.find(stream_id, owner)
    await context.registry.fill(stream, await request.body())
    return stream.as_json()


@router.get("/{stream_id}/frame", response_class=Response, responses=_FRAME_ANSWERS)
async def get_frame(stream_id: str, owner: Owner, context: Parts) -> Response:
    """The newest frame that was read, as a JPEG of at most 512 x 512 pixels."""
    image = context.registry.find(stream_id, owner).newest_image
    if image is None:
        raise ApiError(404, "no frame was read yet, or none since the restart.", code="frame_not_found")
    picture = await asyncio.to_thread(to_jpeg, image)
    return Response(picture, media_type="image/jpeg", headers={"cache-control": "no-store"})


@router.post("/{stream_id}/frames", openapi_extra=_FRAMES_BODY)
async def push_frames(
    stream_id: str,
    request: Request,
    owner: Owner,
    context: Parts,
    time: Annotated[float | None, Query(description="Seconds; never before the newest frame's.")] = None,
    wait: Annotated[bool, Query(description="Answer when the frames were read, and drop none.")] = False,
    x_frame_time: Annotated[float | None, Header()] = None,
) -> dict[str, Any]:
    """Send a frame (JPEG or PNG), or several as multipart."""
    stream = context.registry.find(stream_id, owner)
    if None not in (time, x_frame_time) and time != x_frame_time:
        raise invalid("time and X-Frame-Time differ: give one of them.", "time")
    given = x_frame_time if time is None else time
    pictures, times = await _frames(request, given, context)
    async with stream.arrivals:  # frames keep the order in which they came
        images = await asyncio.to_thread(lambda: [_picture(data) for data in pictures])
        waits = await _push_all(stream, images, times, wait, context)
    if wait:
        await asyncio.gather(*(until_done(done) for done in waits))
    return {
        "id": stream.id,
        "object": "stream.frames",
        "accepted": len(images),
        "dropped": stream.num_dropped,
        "queued": len(stream.queue),
        "time": stream.last_time,
    }


async def _push_all(
    stream: Stream, images: list[np.ndarray], times: list[float | None], wait: bool, context: Context
) -> list["Future[bool]"]:
    """Queue frames; those that are waited for do not push each other out."""
    waits: list[Future[bool]] = []
    for image, time in zip(images, times, strict=True):
        size = stream.settings.queue_size
        if wait and len(waits) >= size:
            await until_done(waits[len(waits) - size])
        waits.append(context.worker.push(stream, image, time))
    return waits


async def _frames(
    request: Request, given: float | None, context: Context
) -> tuple[list[bytes], list[float | None]]:
    """Encoded pictures and their times."""
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _of_form(request, given, context)
    if kind not in _FORMATS:
        raise ApiError(415, f"the body is {kind[:100]!r}: send {', '.join(_FORMATS)} or multipart/form-data.")
    return [await request.body()], [_checked_time(given)]


async def _of_form(
    request: Request, given: float | None, context: Context
) -> tuple[list[bytes], list[float | None]]:
    most = context.limits.frames_per_request
    async with request.form(max_files=most, max_fields=most) as form:
        unknown = sorted(set(form) - {"frame", "time"})
        if unknown:
            raise invalid(f"the form has {unknown[:5]}; it has frame and time.", unknown[0][:100])
        files = form.getlist("frame")
        if not files or not all(isinstance(file, UploadFile) for file in files):
            raise invalid("give each frame as a file named frame.", "frame")
        pictures = [await file.read() for file in files if isinstance(file, UploadFile)]
        texts = [str(text) for text in form.getlist("time")]
    if given is not None:
        if texts or len(pictures) > 1:
            raise invalid("several frames have their times as fields named time.", "time")
        return pictures, [_checked_time(given)]
    if texts and len(texts) != len(pictures):
        raise invalid(f"{len(pictures)} frames came with {len(texts)} times; give one each or none.", "time")
    times: list[float | None] = [_checked_time(_number(text)) for text in texts]
    return pictures, times or [None] * len(pictures)


def _number(text: str) -> float:
    if not re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", text.strip(), re.IGNORECASE):
        raise invalid(f"time is {text[:50]!r}; give seconds.", "time")
    try:
        return float(text)
    except ValueError as error:
        raise invalid(f"time is {text[:50]!r}; give seconds.", "time") from error


def _checked_time(seconds: float | None) -> float | None:
    if seconds is not None and not (math.isfinite(seconds) and abs(seconds) <= 1e10):
        raise invalid(f"time is {seconds}; give seconds, at most 1e10 from zero.", "time")
    return seconds


def _picture(data: bytes) -> np.ndarray:
    try:
        return np.asarray(open_image(data))
    except InfiniteVLError as error:
        raise ApiError(400, str(error), param="frame", code="invalid_image") from error


@router.post("/{stream_id}/ask", response_model=None)
async def ask(
    stream_id: str, body: AskRequest, request: Request, owner: Owner, context: Parts
) -> dict[str, Any] | Response:
    """Answer a question about what was seen so far, from all frames that were sent before it."""
    stream = context.registry.find(stream_id, owner)
    job = _job(stream, body, context)
    context.worker.submit(job)
    answer = _StreamAnswer(job, stream, body.question)
    if body.stream:
        return streamed(answer.events(), lambda: context.worker.cancel(job))
    async with cancelled_if_gone(request, lambda: context.worker.cancel(job)):
        async for event in answer.events():
            last = event
    return last


def _job(stream: Stream, body: AskRequest, context: Context) -> Job:
    limits = context.limits
    if not body.question.strip() or len(body.question) > limits.question_letters:
        raise invalid(f"question: give 1 to {limits.question_letters} letters.", "question")
    if not stream.num_sent and not stream.stats.frames:
        raise invalid("nothing was seen yet: send a frame before the first question.", "question")
    stops = stops_of(body)
    if stops and stream.settings.keep_turns:
        raise invalid("a stream that keeps its turns takes whole answers: leave stop out.", "stop")
    return Job(
        samplings_of(body, limits, ("max_tokens",), 1),
        stops,
        stream=stream,
        question=body.question,
        after=stream.num_sent,
        num_prompt_tokens=context.num_tokens(body.question, stream.settings.system),
    )


class _StreamAnswer:
    """The events of a job in the shape of stream answers."""

    def __init__(self, job: Job, stream: Stream, question: str) -> None:
        self._job, self._stream, self._question = job, stream, question
        self._id = f"answer_{secrets.token_hex(12)}"

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Pieces, then the whole answer."""
        text = ""
        async for event in self._job.events():
            if isinstance(event, Piece):
                text += event.text
                yield self._base("stream.answer.delta") | {"delta": event.text}
            else:
                ended = event
        frames, time = self._job.seen
        yield self._base("stream.answer") | {
            "question": self._question,
            "answer": text,
            "finish_reason": ended.finish_reason,
            "frames": frames,
            "time": time,
            "usage": usage(self._job.num_prompt_tokens, ended.num_tokens),
        }

    def _base(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "stream": self._stream.id}
