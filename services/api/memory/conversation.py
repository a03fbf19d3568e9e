"""A turn's memory on the request path: what was said before it, how much of that fits, and the record of what it became."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from services.api.events import Answer, Event, Finished, Reasoning, Replaced, ToolCallDelta
from services.api.memory.errors import (
    HistoryConflict,
    NothingNew,
    SessionBusy,
    SessionChanged,
    SessionError,
    SessionNotFound,
    StoreUnavailable,
)
from services.api.memory.merge import merge
from services.api.memory.recent import RecentHistories
from services.api.memory.records import History, NewTurn, Outcome, PastTurn, Session, Turn, TurnHandle
from services.api.memory.store import SessionStore
from services.api.memory.turn_ids import TurnWriter
from services.api.memory.window import Window, choose_window
from services.contract.chat_format import Message, ToolCall

_SECOND_TRY_S = 0.2


class Conversation:
    """One session during one turn: load, take what is new, choose what fits, begin, record, end."""

    def __init__(
        self,
        store: SessionStore,
        writer: TurnWriter,
        tenant: str,
        session_id: str,
        recent: RecentHistories | None = None,
    ) -> None:
        self._recent = recent
        self._may_be_old = False
        self._wait_s = 0.0
        self._store = store
        self._writer = writer
        self._tenant = tenant
        self.id = session_id
        self._history = History(store.draft(tenant, session_id), ())
        self._copied: tuple[PastTurn, ...] = ()
        self._new: tuple[Message, ...] = ()
        self._new_ids: tuple[int, ...] = ()
        self._handle: TurnHandle | None = None
        self.created = 0.0  # of the turn, once it has begun
        self._begun: NewTurn | None = None
        self.seq = 0  # the running turn's number, from 1 once it has begun
        self._reset_record()

    @property
    def system_prompt(self) -> str | None:
        """The session's own, if it has one."""
        return self._history.session.system_prompt

    @property
    def latest(self) -> int:
        """The number of the latest turn that later prompts see; 0: there is none."""
        return self._history.turns[-1].seq if self._history.turns else 0

    @property
    def messages(self) -> list[Message]:
        """Everything that was said, the new messages included, dropped turns too: what a guard must know."""
        found: list[Message] = []
        for turn in self._history.turns:
            found += [*turn.messages, turn.reply]
        return [*found, *self._new]

    async def open(self, wait_s: float) -> None:
        """The session as this process left it, or as the database has it. Raises `SessionBusy`."""
        self._wait_s = wait_s
        remembered = self._recent.take(self._tenant, self.id) if self._recent is not None else None
        if remembered is None:
            await self.load()
        else:
            self._history, self._may_be_old = remembered, True

    async def load(self) -> None:
        """The session as it is now; a draft when there is none of this name. Raises `SessionBusy`."""
        self._may_be_old = False
        found = await self._store.load(self._tenant, self.id, wait_s=self._wait_s)
        self._history = found or History(self._store.draft(self._tenant, self.id), ())

    def begin_as_copy(self, history: History, upto: int) -> None:
        session = history.session
        draft = self._store.draft(
            self._tenant, self.id, metadata=session.metadata, ttl_s=session.ttl_s, system_prompt=session.system_prompt
        )
        self._copied = tuple(turn for turn in history.turns if turn.seq <= upto)
        self._history = History(draft, self._copied)

    async def answered(self, idempotency_key: str, request_hash: str) -> Turn | None:
        """What this very request was answered before; raises `IdempotencyConflict`."""
        if self._may_be_old:
            await self.load()
        return await self._store.answered(self._history.session, idempotency_key, request_hash)

    async def take(self, sent: Sequence[Message]) -> None:
        """Keeps what is new in `sent`; raises `HistoryConflict` and `NothingNew`, never by a history that may be old."""
        try:
            self._take(sent)
        except (HistoryConflict, NothingNew):
            if not self._may_be_old:
                raise
            await self.load()
            self._take(sent)

    def _take(self, sent: Sequence[Message]) -> None:
        session = self._history.session
        merged = merge(self._history.turns, sent, session.system_prompt)
        self._new = merged.messages
        self._new_ids = tuple(self._writer.input_ids(self._new))
        if merged.system_prompt != session.system_prompt:
            session = dataclasses.replace(session, system_prompt=merged.system_prompt)
            self._history = dataclasses.replace(self._history, session=session)

    def window(self, system_prompt: str | None, tools: Sequence[dict[str, Any]], budget: int) -> Window:
        """The prompt's ids within `budget` tokens: system prompt, the newest whole turns that fit, the new messages."""
        turns = self._history.turns
        glued = [turn.answers_tools for turn in turns] + [self._new[0].role == "tool"]
        return choose_window(
            self._writer.system_ids(system_prompt, tools),
            [self._writer.past_ids(turn) for turn in turns],
            self._new_ids,
            budget,
            glued,
        )

    async def begin(
        self,
        request_id: str,
        *,
        adapter: tuple[str, str] | None = None,
        idempotency_key: str | None = None,
        request_hash: str | None = None,
    ) -> None:
        """Writes the turn down as pending. Raises `SessionChanged` when another replica was quicker: load and take again."""
        name, version = adapter or (None, None)
        new = NewTurn(
            self._new,
            request_id,
            ids=self._new_ids,
            format_digest=self._writer.digest,
            adapter=name,
            adapter_version=version,
            idempotency_key=idempotency_key,
            request_hash=request_hash,
        )
        session = self._history.session
        for turn in self._copied:
            session = await self._copy(session, turn)
        try:
            self._handle = await self._store.begin_turn(session, new)
        except (SessionBusy, SessionNotFound):
            if self._may_be_old:
                raise SessionChanged() from None
            raise
        self._begun = new
        self.seq, self.created = self._handle.seq, self._handle.created

    async def _copy(self, session: Session, turn: PastTurn) -> Session:
        new = NewTurn(turn.messages, f"copy-of-turn-{turn.seq}", ids=turn.input_ids, format_digest=turn.format_digest)
        handle = await self._store.begin_turn(session, new)
        outcome = Outcome(
            "blocked" if turn.status == "blocked" else "done",
            turn.answer,
            tool_calls=turn.tool_calls,
            ids=turn.reply_ids,
            finish_reason="stop",
        )
        await self._store.finish_turn(handle, outcome)
        return handle.session

    # What the reader is left with

    def _reset_record(self) -> None:
        self._reasoning: list[str] = []
        self._answer: list[str] = []
        self._calls: list[tuple[str, list[str]]] = []

    def record(self, event: Event) -> None:
        """Notes what leaves. Of a blocked reply only what stands in its place is kept."""
        if isinstance(event, Reasoning):
            self._reasoning.append(event.text)
        elif isinstance(event, Answer):
            self._answer.append(event.text)
        elif isinstance(event, ToolCallDelta):
            if event.call_id is not None:
                self._calls.append((event.name or "", []))
            self._calls[-1][1].append(event.arguments)
        elif isinstance(event, Replaced):
            self._reset_record()
            self._answer.append(event.text)

    async def end(self, finished: Finished, *, keeps_reasoning: bool) -> None:
        """The turn is over: durable when this returns. Raises `StoreUnavailable`, `SessionNotFound`, `TurnLost`."""
        status = {"content_filter": "blocked", "abort": "aborted"}.get(finished.reason, "done")
        outcome = self._outcome(status, keeps_reasoning)
        await self._write(
            dataclasses.replace(
                outcome,
                ids=tuple(self._writer.reply_ids(_reply(outcome))),
                finish_reason=finished.reason,
                thinking_truncated=finished.thinking_truncated,
                safety=finished.safety,
                usage=finished.usage,
            )
        )

    async def abandon(self) -> None:
        """Closes a turn that was begun and not ended as aborted, with what had left by then. Never raises the store's errors."""
        if self._handle is not None:
            with contextlib.suppress(SessionError):
                await self._write(self._outcome("aborted", keeps_reasoning=False))

    def _outcome(self, status: Any, keeps_reasoning: bool) -> Outcome:
        calls = tuple(ToolCall(name=name, arguments="".join(parts)) for name, parts in self._calls)
        reasoning = "".join(self._reasoning) if keeps_reasoning and status != "blocked" else ""
        return Outcome(status, "".join(self._answer), reasoning or None, calls)

    async def _write(self, outcome: Outcome) -> None:
        handle, self._handle = self._handle, None
        assert handle is not None, "no turn was begun"
        try:
            await self._store.finish_turn(handle, outcome)
        except StoreUnavailable:
            await asyncio.sleep(_SECOND_TRY_S)
            await self._store.finish_turn(handle, outcome)
        if self._recent is not None:
            self._recent.put(self._after(handle, outcome))

    def _after(self, handle: TurnHandle, outcome: Outcome) -> History:
        """The history that the next turn finds."""
        turns, new = self._history.turns, self._begun
        assert new is not None
        if outcome.status != "aborted":
            done = PastTurn(
                handle.seq, outcome.status, new.messages, outcome.answer, outcome.tool_calls, new.ids, outcome.ids,
                new.format_digest,
            )  # fmt: skip
            turns = (*turns, done)
        return History(handle.session, turns)


def _reply(outcome: Outcome) -> Message:
    return Message(role="assistant", content=outcome.answer, tool_calls=outcome.tool_calls)
