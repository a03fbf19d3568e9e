"""/cases/{id}: the page on which a run goes on, for who holds its signed link; framed by allow-listed origins only."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from services.api import messages
from services.api.ehr.cases import Case, Cases
from services.api.ehr.findings import say
from services.api.ehr.links import Links
from services.api.errors import NotFound
from services.api.http.sse import STREAM_HEADERS

FILES: Final = Path(__file__).parent / "static"
_TYPES: Final = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
_NUMBER = re.compile(r"\d{1,9}")


def pages_router(cases: Cases, links: Links, frame_origins: Sequence[str]) -> APIRouter:
    """`frame_origins`: who may show the page inside theirs; none: nobody."""
    router = APIRouter()
    headers = {
        "content-security-policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            f"frame-ancestors {' '.join(frame_origins) or chr(39) + 'none' + chr(39)}; "
            "require-trusted-types-for 'script'; trusted-types 'none'"
        ),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
    }
    if not frame_origins:
        headers["x-frame-options"] = "DENY"
    page = (FILES / "case.html").read_bytes()
    files = {p.name: (p.read_bytes(), _TYPES[p.suffix]) for p in sorted(FILES.iterdir()) if p.suffix in _TYPES}

    def find(request: Request, case_id: str) -> Case:
        """One answer for a bad link, an old one and a case that is gone: nobody learns which cases there are."""
        case = cases.get(case_id) if links.is_valid(case_id, request.query_params.get("t", "")) else None
        if case is None:
            raise NotFound("this link has expired or is not valid: open the case from its card again")
        return case

    @router.get("/cases/files/{name}", summary="Files of the case page", operation_id="case_file")
    async def file(name: str) -> Response:
        if name not in files:
            raise NotFound("the page has no such file: reload it")
        content, media_type = files[name]
        return Response(content, headers={**headers, "cache-control": "no-cache"}, media_type=media_type)

    @router.get("/cases/{case_id}", summary="The page of a case", operation_id="case_page")
    async def case_page(request: Request, case_id: str) -> Response:
        find(request, case_id)
        return Response(page, headers=headers, media_type="text/html; charset=utf-8")

    @router.get("/cases/{case_id}/events", summary="A case as it is written", operation_id="case_events")
    async def case_events(request: Request, case_id: str) -> Response:
        case = find(request, case_id)
        last = request.headers.get("last-event-id", "")
        start = int(last) if _NUMBER.fullmatch(last) else 0
        return StreamingResponse(_frames(case, start), headers={**STREAM_HEADERS, "cache-control": "no-store"})

    return router


async def _frames(case: Case, start: int) -> AsyncIterator[bytes]:
    yield b"data: " + orjson.dumps({"language": case.language} | ({"demo": True} if case.demo else {})) + b"\n\n"
    async for number, frame in case.follow(start):
        yield b"id: %d\ndata: " % number + orjson.dumps(frame) + b"\n\n"
    last: dict[str, object] = {"done": True}
    if case.error is not None:
        last["error"] = case.error.message if case.language == "en" else messages.ZH[case.error.code].split("。")[0]
    elif not case.answer:
        last["error"] = say(case.language, "分析已中止", "the analysis was stopped")
    yield b"data: " + orjson.dumps(last) + b"\n\n"
