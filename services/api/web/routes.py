"""GET / for people: the page, and the files that it consists of. Nothing comes from another host, nothing runs inline."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from services.api.errors import NotFound

FILES: Final = Path(__file__).parent / "static"
MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Trusted types: even a mistake of ours cannot turn a model's text into markup.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
SECURITY: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class _ForReaders(APIRoute):
    """Matches browsers only: programs that ask for / get JSON from the route behind this one."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        accepted = Headers(scope=scope).get("accept", "") if scope["type"] == "http" else ""
        return super().matches(scope) if "text/html" in accepted else (Match.NONE, {})


def web_router() -> APIRouter:
    """Goes before the router with the JSON answer for `/`. The files are read once, here."""
    router = APIRouter(include_in_schema=False)
    files = {path.name: (path.read_bytes(), MEDIA_TYPES[path.suffix]) for path in sorted(FILES.iterdir())}

    async def page(request: Request) -> Response:
        return _answer(request, *files["index.html"])

    async def asset(request: Request, name: str) -> Response:
        if name not in files:
            raise NotFound(f"the page has no file {name[:80]!r}: reload it")
        return _answer(request, *files[name])

    router.add_api_route("/", page, methods=["GET"], route_class_override=_ForReaders)
    router.add_api_route("/web/{name}", asset, methods=["GET"])
    return router


def _answer(request: Request, content: bytes, media_type: str) -> Response:
    """The file, or 304: browsers keep it and ask each time, so that a new version shows at once."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**SECURITY, "etag": tag, "cache-control": "no-cache", "vary": "accept"}
    known = [given.strip().removeprefix("W/") for given in request.headers.get("if-none-match", "").split(",")]
    if tag in known:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
