"""/v1/responses: OpenAI's newer API over the same turns. A stored response is a turn of a session of its own."""

from __future__ import annotations

import contextlib
import re
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.api import logs
from services.api.errors import ApiError, ResponseNotFound, UnsupportedParameter
from services.api.events import Finished
from services.api.http.body import read_model
from services.api.http.chunks import Head
from services.api.http.responses_events import (
    ResponseWriter,
    call_item,
    event_frame,
    finished_response,
    message_item,
    reasoning_item,
)
from services.api.http.responses_request import ResponsesRequest, to_chat
from services.api.http.run import ChatDoor, Remembered, Run
from services.api.http.schemas import ChatRequest
from services.api.http.sse import EventStreamResponse, JsonTurnResponse
from services.api.memory.conversation import Conversation
from services.api.memory.conversations import Memory
from services.api.memory.errors import SessionNotFound
from services.api.memory.records import Turn
from services.api.messages import text_of

_ID = re.compile(r"(resp_[0-9a-f]{32})_[0-9a-f]{8}")


def responses_router(door: ChatDoor) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/responses", summary="One turn, in OpenAI's newer form", operation_id="create_response")
    async def create(request: Request) -> Response:
        asked = await read_model(request, ResponsesRequest, door.max_body_bytes)
        wire = to_chat(asked)
        door.names.require(wire.model)
        answer = _Answer(door, asked, wire, request.state.tenant)
        if wire.stream:
            run = answer.run
            return EventStreamResponse(answer.frames, run.to_error, run.gone, door.keep_alive_s, answer.last)
        return JsonTurnResponse(answer.collect, answer.run.to_error, answer.run.gone)

    @router.get("/v1/responses/{response_id:path}", summary="A stored response", operation_id="response")
    async def response(request: Request, response_id: str) -> Response:
        _, turn = await _find(_memory(door), request.state.tenant, response_id)
        return Response(orjson.dumps(stored_response(turn, door.names.default)), media_type="application/json")

    return router


def _memory(door: ChatDoor) -> Memory:
    if door.memory is None:
        raise UnsupportedParameter(
            "this server keeps no conversations: leave previous_response_id out and send store: false",
            param="previous_response_id",
        )
    door.memory.require_open()
    return door.memory


async def _find(memory: Memory, tenant: str, response_id: str) -> tuple[str, Turn]:
    """The session and the turn that a response id names; raises `ResponseNotFound`."""
    unknown = ResponseNotFound(
        "there is no such response: it was not stored, has expired, or was deleted; send the conversation anew",
        param="previous_response_id",
    )
    found = _ID.fullmatch(response_id)
    if found is None:
        raise unknown
    after = 0
    try:
        session = await memory.store.get(tenant, found[1])
        while turns := await memory.store.turns(session, after=after):
            for turn in turns:
                if turn.request_id == response_id and turn.status in ("done", "blocked"):
                    return found[1], turn
            after = turns[-1].seq
    except SessionNotFound:
        raise unknown from None
    raise unknown


class _Answer:
    """One request's turn as response events, or as one response object."""

    def __init__(self, door: ChatDoor, asked: ResponsesRequest, wire: ChatRequest, tenant: str) -> None:
        self._door = door
        self._asked = asked
        self._tenant = tenant
        self._stores = asked.store is not False and door.memory is not None
        session_id = f"resp_{uuid.uuid4().hex}"
        head = Head(f"{session_id}_{secrets.token_hex(4)}", int(time.time()), wire.model or door.names.default)
        self._session_id = session_id
        self.run = Run(door, wire, head, tenant, self._remembered())
        self._writer = ResponseWriter(self._base, lambda: self.run.head.id)

    def _remembered(self) -> Remembered:
        return Remembered(self._conversation(), stores=self._stores, instructions=self._asked.instructions)

    @contextlib.asynccontextmanager
    async def _conversation(self) -> AsyncIterator[Conversation | None]:
        """What the turn goes on from. Its session's name is known now, and with it the response's."""
        previous = self._asked.previous_response_id
        if previous is None:
            if not self._stores:
                yield None
                return
            async with _memory(self._door).hold(self._tenant, self._session_id) as conversation:
                yield conversation
            return
        memory = _memory(self._door)
        session_id, turn = await _find(memory, self._tenant, previous)
        going_on = memory.go_on(self._tenant, session_id, turn.seq, self._session_id, stores=self._stores)
        async with going_on as conversation:
            self.run.rename(f"{conversation.id}_{secrets.token_hex(4)}")
            yield conversation

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """SSE frames of the turn; OpenAI's end with the last event."""
        begun = False
        async with contextlib.aclosing(self.run.events()) as events:
            async for _, event in events:
                if not begun:
                    begun = True
                    for frame in self._writer.begin():
                        yield event_frame(frame)
                for delta in self.run.presenters[0].take(event):
                    for frame in self._writer.take(delta):
                        yield event_frame(frame)
                if isinstance(event, Finished):
                    for frame in self._writer.end(event):
                        yield event_frame(frame)

    def last(self, error: ApiError | None) -> bytes:
        """What ends the stream: nothing more, or what went wrong after it had begun."""
        if error is None:
            return b""
        return event_frame(self._writer.failed({"code": error.code, "message": text_of(error, logs.request_id.get())}))

    async def collect(self) -> Mapping[str, Any]:
        finished: Finished | None = None
        async with contextlib.aclosing(self.run.events()) as events:
            async for _, event in events:
                for delta in self.run.presenters[0].take(event):
                    for _ in self._writer.take(delta):
                        pass
                if isinstance(event, Finished):
                    finished = event
                    for _ in self._writer.end(event):
                        pass
        assert finished is not None
        return self._writer.whole(finished)

    def _base(self) -> dict[str, Any]:
        asked, run = self._asked, self.run
        return base_response(run.head) | {
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "reasoning": asked.reasoning or {"effort": None, "summary": None},
            "store": self._stores,
            "temperature": asked.temperature,
            "text": asked.text or {"format": {"type": "text"}},
            "tool_choice": asked.tool_choice or "auto",
            "tools": asked.tools or [],
            "top_p": asked.top_p,
            "user": asked.user,
            "adapter": run.adapter.json() if run.adapter else None,
            **({"session": run.session.json()} if run.session else {}),
        }


def base_response(head: Head) -> dict[str, Any]:
    """The fields that every response has."""
    return {
        "id": head.id,
        "object": "response",
        "created_at": head.created,
        "model": head.model,
        "error": None,
        "incomplete_details": None,
        "background": False,
        "truncation": "disabled",
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def stored_response(turn: Turn, model: str) -> dict[str, Any]:
    """A response as its turn was stored; what was asked for besides the messages is not kept."""
    name = f"{turn.adapter}@{turn.adapter_version}" if turn.adapter else model
    own = turn.request_id.removeprefix("resp_")
    items: list[dict[str, Any]] = []
    if turn.reasoning:
        items.append(reasoning_item(f"rs_{own}_0", [turn.reasoning]))
    if turn.answer or not turn.tool_calls:
        items.append(message_item(f"msg_{own}_{len(items)}", turn.answer, "completed"))
    for call in turn.tool_calls:
        n = len(items)
        items.append(call_item(f"fc_{own}_{n}", f"call_{own[-8:]}_{n}", call.name, call.arguments, "completed"))
    reason: Any = turn.finish_reason or "stop"
    finished = Finished(reason, turn.usage, None, turn.thinking_truncated, turn.safety)
    return finished_response(base_response(Head(turn.request_id, int(turn.created), name)), items, finished)
