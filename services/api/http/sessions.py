"""/v1/sessions: conversations that the server keeps. A tenant sees its own; anybody else's is 404."""

from __future__ import annotations

import uuid
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from services.api.errors import InvalidRequest, UnsupportedParameter
from services.api.http.body import read_model
from services.api.http.chunks import safety_json, usage_json
from services.api.memory.conversations import Memory
from services.api.memory.records import Session, Turn
from services.api.memory.store import SessionStore
from services.contract.chat_format import Message, ToolCall

MOST_PER_PAGE = 1000
MOST_SYSTEM_PROMPT = 65536  # characters


class SessionRequest(BaseModel):
    """POST /v1/sessions."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: str | None = Field(None, description="the session's name; left out: a new one is made up")
    metadata: dict[str, Any] | None = Field(
        None, description="what you attach, at most 16 KiB as JSON; it is only kept"
    )
    ttl_s: float | None = Field(None, description="seconds that the session lives after its last turn")
    system_prompt: str | None = Field(
        None, max_length=MOST_SYSTEM_PROMPT, description="the session's system prompt; left out: the server's"
    )


def sessions_router(memory: Memory | None, max_body_bytes: int) -> APIRouter:
    router = APIRouter()

    def open_memory() -> Memory:
        if memory is None:
            raise UnsupportedParameter(
                "this server keeps no sessions: its operator has set MEDTHINK_DATABASE to nothing"
            )
        memory.require_open()
        return memory

    def store() -> SessionStore:
        return open_memory().store

    @router.post("/v1/sessions", summary="Begin a session", operation_id="create_session")
    async def create(request: Request) -> Response:
        wanted = await read_model(request, SessionRequest, max_body_bytes)
        draft = store().draft(
            request.state.tenant,
            f"sess_{uuid.uuid4().hex}" if wanted.id is None else wanted.id,
            metadata=wanted.metadata,
            ttl_s=wanted.ttl_s,
            system_prompt=wanted.system_prompt,
        )
        return _json(session_json(await store().create(draft)))

    @router.get("/v1/sessions", summary="Sessions, newest first", operation_id="sessions")
    async def sessions(request: Request) -> Response:
        limit = _number(request, "limit", 50, 1, MOST_PER_PAGE)
        cursor = request.query_params.get("cursor") or None
        page = await store().list(request.state.tenant, limit=limit, cursor=cursor)
        data = [session_json(session) for session in page.sessions]
        more = page.next_cursor is not None
        return _json({"object": "list", "data": data, "has_more": more, "next_cursor": page.next_cursor})

    @router.get("/v1/sessions/{session_id:path}", summary="A session and its turns", operation_id="session")
    async def session(request: Request, session_id: str) -> Response:
        after = _number(request, "after", 0, 0, 2**31 - 1)
        limit = _number(request, "limit", MOST_PER_PAGE, 1, MOST_PER_PAGE)
        one = await store().get(request.state.tenant, session_id)
        turns = await store().turns(one, after=after, limit=limit + 1)
        shown = {"turns": [turn_json(turn) for turn in turns[:limit]], "has_more": len(turns) > limit}
        return _json(session_json(one) | {"turn_count": one.turns} | shown)

    @router.delete("/v1/sessions/{session_id:path}", summary="Erase a session", operation_id="delete_session")
    async def delete(request: Request, session_id: str) -> Response:
        erased = await open_memory().delete(request.state.tenant, session_id)
        return _json({"id": session_id, "object": "session.deleted", "deleted": True, "erased": erased})

    return router


def session_json(session: Session) -> dict[str, Any]:
    """A session in lists; `turns` counts those begun."""
    return {
        "id": session.id,
        "object": "session",
        "created": int(session.created),
        "expires": None if session.expires is None else int(session.expires),
        "ttl_s": session.ttl_s,
        "metadata": dict(session.metadata),
        "system_prompt": session.system_prompt,
        "turns": session.turns,
    }


def turn_json(turn: Turn) -> dict[str, Any]:
    """A turn as its owner reads it: what was asked, thought and answered, under which version and verdict."""
    adapter = None if turn.adapter is None else {"name": turn.adapter, "version": turn.adapter_version}
    return {
        "turn": turn.seq,
        "status": turn.status,
        "messages": [_message_json(message) for message in turn.messages],
        "reasoning": turn.reasoning,
        "answer": turn.answer,
        "tool_calls": [_call_json(call) for call in turn.tool_calls],
        "finish_reason": turn.finish_reason,
        "thinking_truncated": turn.thinking_truncated,
        "safety": safety_json(turn.safety),
        "usage": usage_json([turn.usage]),
        "adapter": adapter,
        "response_id": turn.request_id,
        "created": turn.created,
        "finished": turn.finished,
    }


def _message_json(message: Message) -> dict[str, Any]:
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    return shown | ({"tool_calls": [_call_json(call) for call in message.tool_calls]} if message.tool_calls else {})


def _call_json(call: ToolCall) -> dict[str, Any]:
    return {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _number(request: Request, name: str, default: int, least: int, most: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and least <= int(text) <= most):
        raise InvalidRequest(f"{name} must be a whole number from {least} to {most}", param=name)
    return int(text)


def _json(value: dict[str, Any]) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
