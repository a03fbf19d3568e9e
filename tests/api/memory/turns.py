"""Turns for tests of the memory."""

from __future__ import annotations

from typing import Any

from services.api.memory.records import NewTurn, Outcome, PastTurn, Session, Status
from services.api.memory.store import SessionStore
from services.contract.chat_format import Message, ToolCall


def user(text: str) -> Message:
    return Message(role="user", content=text)


def said(text: str) -> Message:
    return Message(role="assistant", content=text)


def question(text: str = "我咳嗽三天了", **options: Any) -> NewTurn:
    return NewTurn((user(text),), **{"request_id": "req_1", **options})


def answer(text: str = "请多喝水。", **options: Any) -> Outcome:
    return Outcome("done", text, **options)


async def one_turn(store: SessionStore, tenant: str, session_id: str, ask: str, reply: str, **options: Any) -> Session:
    """A whole turn, as a request makes it."""
    found = await store.load(tenant, session_id)
    session = found.session if found else store.draft(tenant, session_id)
    handle = await store.begin_turn(session, question(ask))
    await store.finish_turn(handle, answer(reply, **options))
    return handle.session


def past(
    ask: str, reply: str, status: Status = "done", calls: tuple[ToolCall, ...] = (), seq: int = 1, **options: Any
) -> PastTurn:
    return PastTurn(seq, status, (user(ask),), reply, calls, **options)
