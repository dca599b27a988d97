"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from infinitevl.errors import InfiniteVLError

logger = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_ALTERNATIVES = ("str", "int", "float", "bool")  # names that pydantic gives to them, beside list[...]
_PASSWORD = re.compile(r"(://)[^/?#@\s]*@")
_SHORT = 60  # letters of a value that an error repeats
RETRY_AFTER = 1  # seconds
MOVING = "stream_moving"
MOVED_HEADER = "x-infinitevl-moved"  # tells the ingress of replicas to look for the stream again


class ApiError(Exception):
    """An answer that is an error.

    status: of HTTP. param: the field that it is about. code: a word for programs.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def unsupported(param: str, advice: str) -> ApiError:
    """A field of the request that this server does not know or offer."""
    return ApiError(400, f"{param} is not supported: {advice}", param=param, code="unsupported_parameter")


def invalid(message: str, param: str | None = None) -> ApiError:
    """A value that cannot be used."""
    return ApiError(400, message, param=param, code="invalid_value")


def busy(message: str) -> ApiError:
    """No room now, but later."""
    return ApiError(429, message, code="busy")


def moving(stream_id: str) -> ApiError:
    """A stream that another server has, or is about to have."""
    return ApiError(
        503,
        f"the stream {stream_id} is held by another server with the same --state-dir, or on its way from "
        "one; try again soon.",
        code=MOVING,
    )


def body_of(error: ApiError) -> dict[str, Any]:
    """The JSON of an error."""
    kind = _TYPES.get(error.status, "invalid_request_error")
    kind = "rate_limit_error" if error.status == 429 else "server_error" if error.status >= 500 else kind
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def response_of(error: ApiError) -> JSONResponse:
    """The response of an error."""
    headers = {"retry-after": str(RETRY_AFTER)} if error.status in (429, 503) else {}
    if error.code == MOVING:
        headers[MOVED_HEADER] = "1"
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(body_of(error), error.status, headers)


def masked(text: str) -> str:
    """A text without the passwords of the addresses in it."""
    return _PASSWORD.sub(r"\1***@", text)


def as_api_error(error: BaseException) -> ApiError:
    """Any error as one that can be shown; what is nobody's fault outside is logged, and its text kept."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InfiniteVLError):
        return invalid(masked(str(error)))
    logger.error("an answer failed", exc_info=error)
    return ApiError(500, "the server failed at this; its log says why.", code="internal_error")


def install(app: FastAPI) -> None:
    """Let every error of an app, unknown paths and bad bodies included, have OpenAI's shape."""

    @app.exception_handler(ApiError)
    @app.exception_handler(InfiniteVLError)
    async def known(request: Request, error: Exception) -> JSONResponse:
        return response_of(as_api_error(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return response_of(_of_validation(error.errors(), request.headers.get("content-type")))

    @app.exception_handler(WebSocketRequestValidationError)
    async def malformed_socket(socket: WebSocket, error: WebSocketRequestValidationError) -> None:
        response = response_of(_of_validation(error.errors(), None))
        await socket.send_denial_response(response)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}. All calls are listed at /docs."
        response = response_of(ApiError(error.status_code, message))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        return response_of(as_api_error(error))


def _of_validation(errors: Sequence[Any], content_type: str | None) -> ApiError:
    first = max(errors, key=lambda error: len(error["loc"]))  # the others are of other kinds of content
    place = [part for part in first["loc"] if part not in ("body", "query", "header", "path")]
    param = _path_text(place) or None
    if first["type"] == "union_tag_invalid":
        given, valid = first["ctx"]["tag"], first["ctx"]["expected_tags"].replace("'", "")
        return unsupported(f"{param}.type", f"{given[:100]!r} is no kind of content; give one of {valid}.")
    if first["type"] == "extra_forbidden":
        return unsupported(str(param), "leave it out; /docs lists what is known.")
    if first["type"] == "json_invalid":
        return invalid(f"the body is not JSON: {first['ctx']['error']} at letter {place[0]}.")
    if not place and first["loc"][:1] == ("body",) and not isinstance(first.get("input"), dict):
        kind = f"its content-type is {content_type!r}" if content_type else "it has no content-type"
        return invalid(
            f"the body is not a JSON object: send one as 'content-type: application/json'; {kind}."
        )
    if first["type"] == "missing":
        return invalid(f"{param or 'the body'} is missing.", param)
    return invalid(f"{param or 'the body'}: {first['msg']}{_given(first.get('input'))}.", param)


def _given(value: Any) -> str:
    """What was given, where it is short."""
    if isinstance(value, int) and abs(value) >= 10**_SHORT:
        return ""
    if value is None or isinstance(value, int | float):
        return f", not {value!r}"
    return f", not {masked(value)!r}" if isinstance(value, str) and len(value) <= _SHORT else ""


def _path_text(place: Sequence[str | int]) -> str:
    """As in messages[0].content; names of alternatives are left out."""
    text = ""
    for before, part in zip([None, *place], place, strict=False):
        if part == before:  # the kind of content has the name of its field
            continue
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and part not in _ALTERNATIVES:
            text += f".{part}" if text else part
    return text
