"""The pages at `/` and `/docs`: static files, with headers that let a browser load nothing from elsewhere."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' blob: data:; media-src 'self' blob:; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self), display-capture=(self), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # an updated server must not meet the scripts of an older page
}


def add_page(app: FastAPI) -> None:
    """Serve the page at `/`, the list of calls at `/docs`, and their files below `/page`; without a key."""

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(FOLDER / "index.html", headers=SECURITY_HEADERS)

    @app.get("/docs", include_in_schema=False)
    def docs() -> FileResponse:
        return FileResponse(FOLDER / "docs.html", headers=SECURITY_HEADERS)

    app.mount("/page", _PageFiles(directory=FOLDER), name="page")


class _PageFiles(StaticFiles):
    """The page's scripts, styles and icon; other files of the folder stay hidden."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        known = path if Path(path).suffix in {".js", ".css", ".svg"} else "not-a-file"
        response = await super().get_response(known, scope)
        response.headers.update(SECURITY_HEADERS)
        return response
