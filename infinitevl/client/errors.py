"""What a call to a server can fail with."""

import json
from typing import Any

from infinitevl.errors import InfiniteVLError


class ClientError(InfiniteVLError):
    """A server that refused a call, or could not be reached.

    status: of HTTP; None where no answer came. code: a word for programs, such as stream_not_found; None
    where the server gave none. param: the field that it is about.
    """

    def __init__(
        self, message: str, status: int | None = None, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param = message, status, code, param

    @classmethod
    def of_body(cls, body: bytes, status: int | None) -> "ClientError":
        """From the body of a response."""
        try:
            return cls.of_json(json.loads(body), status)
        except (ValueError, RecursionError):
            return cls.of_json(body[:200].decode(errors="replace"), status)

    @classmethod
    def of_json(cls, data: Any, status: int | None) -> "ClientError":
        """From JSON, which is {"error": {...}} where it comes from this server."""
        error = data.get("error") if isinstance(data, dict) else None
        if not isinstance(error, dict):
            return cls(f"the server answered with status {status}: {str(data)[:200]}", status)
        code, param = error.get("code"), error.get("param")
        return cls(str(error.get("message")), status, code and str(code), param and str(param))
