"""POST /v1/chat/completions: wire to turn, and events to wire."""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.api.errors import ContradictoryParameters, UnsupportedParameter
from services.api.events import Finished
from services.api.http.body import read_model
from services.api.http.chunks import ChunkWriter, CollectedChoice, Head, completion_json
from services.api.http.run import ChatDoor, Remembered, Run
from services.api.http.schemas import ChatRequest
from services.api.http.sse import EventStreamResponse, JsonTurnResponse

_HOW_IT_IS_SENT = {"stream", "stream_options"}  # a retry may ask for the same answer in another form


def chat_router(door: ChatDoor) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", summary="One chat turn, thought and answer", operation_id="chat")
    async def chat(request: Request) -> Response:
        """Reads the request; the turn is built and run inside the response, which watches the client."""
        wire = await read_model(request, ChatRequest, door.max_body_bytes)
        door.names.require(wire.model)
        head = Head(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), wire.model or door.names.default)
        tenant: str = request.state.tenant
        answer = _ChatAnswer(Run(door, wire, head, tenant, _remembered(door, request, wire, tenant)), wire)
        if wire.stream:
            return EventStreamResponse(answer.frames, answer.run.to_error, answer.run.gone, door.keep_alive_s)
        return JsonTurnResponse(answer.collect, answer.run.to_error, answer.run.gone)

    return router


def _remembered(door: ChatDoor, request: Request, wire: ChatRequest, tenant: str) -> Remembered | None:
    """The session that body or header names; `None` when they name none."""
    header = request.headers.get("x-session-id")
    if header is not None and wire.session_id is not None and header != wire.session_id:
        raise ContradictoryParameters(
            "session_id and the header X-Session-ID name two sessions: send one of the two", param="session_id"
        )
    session_id = wire.session_id if wire.session_id is not None else header
    if session_id is None:
        return None
    if door.memory is None:
        raise UnsupportedParameter(
            "this server keeps no sessions: leave session_id out and send the whole conversation", param="session_id"
        )
    return Remembered(
        door.memory.hold(tenant, session_id),
        idempotency_key=request.headers.get("idempotency-key"),
        request_hash=request_hash(wire.model_dump(mode="json", exclude_unset=True, exclude=_HOW_IT_IS_SENT)),
    )


def request_hash(body: Mapping[str, Any]) -> str:
    """What a retry must have in common with the first try, 64 hexadecimal digits."""
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


class _ChatAnswer:
    """A turn's events as chat completion chunks, or as one completion."""

    def __init__(self, run: Run, wire: ChatRequest) -> None:
        self.run = run
        self._wire = wire

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """SSE frames of the turn, without the closing [DONE]."""
        run, options = self.run, self._wire.stream_options
        with_usage = bool(options and options.include_usage)
        writer: ChunkWriter | None = None
        roles = set[int]()
        async with contextlib.aclosing(run.events()) as events:
            async for index, event in events:
                writer = writer or ChunkWriter(run.head, with_usage)
                if index not in roles:
                    roles.add(index)
                    yield writer.role(index)
                for delta in run.presenters[index].take(event):
                    yield writer.delta(index, delta)
                if isinstance(event, Finished):
                    yield writer.finish(index, event, run.adapter, run.session)
        if with_usage and writer is not None:
            yield writer.usage(run.finished)

    async def collect(self) -> Mapping[str, Any]:
        """The whole turn as one `chat.completion`."""
        run = self.run
        choices = [CollectedChoice() for _ in range(self._wire.n or 1)]
        async with contextlib.aclosing(run.events()) as events:
            async for index, event in events:
                for delta in run.presenters[index].take(event):
                    choices[index].add(delta)
                if isinstance(event, Finished):
                    choices[index].finished = event
        logprobs = bool(self._wire.logprobs)
        return completion_json(run.head, choices, run.options.shown, logprobs, run.adapter, run.session)
