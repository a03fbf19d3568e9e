"""Between records and rows: what is written into each column, sealed, and read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from services.api.events import Safety, Usage
from services.api.memory.crypto import KeyRing, Sealer, WrappedKey
from services.api.memory.names import idempotency_digest
from services.api.memory.records import NewTurn, Outcome, PastTurn, Session, Turn
from services.contract.chat_format import Message, ToolCall


def session_values(session: Session, metadata_json: str, sealer: Sealer, wrapped: WrappedKey | None) -> dict[str, Any]:
    """The row of a new session."""
    prompt = session.system_prompt
    return {
        "tenant": session.tenant,
        "id": session.id,
        "created": session.created,
        "expires": session.expires,
        "ttl_s": session.ttl_s,
        "version": session.version,
        "turns": session.turns,
        "metadata": sealer.seal("metadata", _bytes(metadata_json)),
        "system_prompt": None if prompt is None else sealer.seal("system_prompt", _bytes(prompt)),
        "key_id": wrapped.key_id if wrapped else None,
        "data_key": wrapped.sealed if wrapped else None,
    }


def seal_system_prompt(session: Session) -> bytes | None:
    """The column of a stored session's system prompt."""
    prompt = session.system_prompt
    return None if prompt is None else session.opened.seal("system_prompt", _bytes(prompt))


def read_session(row: Any, keys: KeyRing) -> Session:
    """A session of its row; raises `KeyMissing` and `SealBroken`."""
    wrapped = WrappedKey(row.key_id, bytes(row.data_key)) if row.data_key is not None else None
    sealer = keys.open(row.tenant, row.id, wrapped)
    prompt = row.system_prompt
    return Session(
        tenant=row.tenant,
        id=row.id,
        created=row.created,
        expires=row.expires,
        ttl_s=row.ttl_s,
        metadata=json.loads(_text(sealer.open("metadata", bytes(row.metadata)))),
        system_prompt=None if prompt is None else _text(sealer.open("system_prompt", bytes(prompt))),
        version=row.version,
        turns=row.turns,
        row=row.row,
        sealer=sealer,
    )


def begun_values(turn: NewTurn, seq: int, sealer: Sealer) -> dict[str, Any]:
    """The columns of a turn that are known before it is generated."""

    def seal(column: str, data: bytes | None) -> bytes | None:
        return None if data is None else sealer.seal(column, data, seq)

    key = turn.idempotency_key
    return {
        "seq": seq,
        "request_id": turn.request_id,
        "idempotency": None if key is None else idempotency_digest(key),
        "request_hash": seal("request_hash", None if turn.request_hash is None else _bytes(turn.request_hash)),
        "messages": seal("messages", _messages(turn.messages)),
        "input_ids": seal("input_ids", _ids(turn.ids)),
        "format_digest": turn.format_digest,
        "adapter": turn.adapter,
        "adapter_version": turn.adapter_version,
        "thinking_truncated": False,
    }


def finished_values(outcome: Outcome, seq: int, sealer: Sealer) -> dict[str, Any]:
    """The columns of a turn that are known when it is over."""

    def seal(column: str, data: bytes | None) -> bytes | None:
        return None if data is None else sealer.seal(column, data, seq)

    return {
        "status": outcome.status,
        "answer": seal("answer", _bytes(outcome.answer)),
        "reasoning": seal("reasoning", None if outcome.reasoning is None else _bytes(outcome.reasoning)),
        "tool_calls": seal("tool_calls", _calls(outcome.tool_calls) if outcome.tool_calls else None),
        "reply_ids": seal("reply_ids", _ids(outcome.ids)),
        "finish_reason": outcome.finish_reason,
        "thinking_truncated": outcome.thinking_truncated,
        "verdict": outcome.safety.verdict,
        "rules": json.dumps(list(outcome.safety.rules)),
        "policy": outcome.safety.policy,
        "usage": json.dumps(dataclasses.asdict(outcome.usage)),
    }


def read_past_turn(row: Any, sealer: Sealer) -> PastTurn:
    """A turn as later prompts need it."""
    opened = _Opened(row, sealer)
    return PastTurn(
        seq=row.seq,
        status=row.status,
        messages=opened.messages(),
        answer=opened.text("answer") or "",
        tool_calls=opened.calls(),
        input_ids=opened.ids("input_ids"),
        reply_ids=opened.ids("reply_ids"),
        format_digest=row.format_digest,
    )


def read_turn(row: Any, sealer: Sealer) -> Turn:
    """A turn as its owner reads it."""
    opened = _Opened(row, sealer)
    safety = Safety() if row.verdict is None else Safety(row.verdict, tuple(json.loads(row.rules)), row.policy)
    return Turn(
        seq=row.seq,
        status=row.status,
        messages=opened.messages(),
        answer=opened.text("answer") or "",
        reasoning=opened.text("reasoning"),
        tool_calls=opened.calls(),
        finish_reason=row.finish_reason,
        thinking_truncated=row.thinking_truncated,
        safety=safety,
        usage=Usage(**json.loads(row.usage)) if row.usage is not None else Usage(),
        adapter=row.adapter,
        adapter_version=row.adapter_version,
        request_id=row.request_id,
        created=row.created,
        finished=row.finished,
    )


def read_request_hash(row: Any, sealer: Sealer) -> str | None:
    return _Opened(row, sealer).text("request_hash")


class _Opened:
    """The sealed columns of one turn."""

    def __init__(self, row: Any, sealer: Sealer) -> None:
        self._row = row
        self._sealer = sealer

    def raw(self, column: str) -> bytes | None:
        sealed = getattr(self._row, column)
        return None if sealed is None else self._sealer.open(column, bytes(sealed), self._row.seq)

    def text(self, column: str) -> str | None:
        raw = self.raw(column)
        return None if raw is None else _text(raw)

    def ids(self, column: str) -> tuple[int, ...]:
        raw = self.raw(column)
        return () if raw is None else tuple(np.frombuffer(raw, dtype="<u4").tolist())

    def messages(self) -> tuple[Message, ...]:
        return tuple(Message.model_validate(m) for m in json.loads(self.text("messages") or "[]"))

    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(ToolCall.model_validate(c) for c in json.loads(self.text("tool_calls") or "[]"))


def _messages(messages: Sequence[Message]) -> bytes:
    """Without thoughts: those that a client sends back are not ours to keep."""
    return _bytes(
        json.dumps(
            [m.model_dump(exclude_defaults=True, exclude={"reasoning_content"}) | {"role": m.role} for m in messages],
            ensure_ascii=False,
        )
    )


def _calls(calls: Sequence[ToolCall]) -> bytes:
    return _bytes(json.dumps([call.model_dump() for call in calls], ensure_ascii=False))


def _ids(ids: Sequence[int]) -> bytes | None:
    return np.asarray(ids, dtype="<u4").tobytes() if ids else None


def _bytes(text: str) -> bytes:
    """JSON bodies can hold half a surrogate pair; what came in must go out."""
    return text.encode("utf-8", "surrogatepass")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")
