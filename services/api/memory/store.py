"""Sessions and their turns: durable, one tenant's apart from another's, one turn of a session at a time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.api.memory.crypto import KeyRing
from services.api.memory.database import Database
from services.api.memory.erase import Eraser
from services.api.memory.errors import (
    IdempotencyConflict,
    SessionBusy,
    SessionChanged,
    SessionExists,
    SessionNotFound,
    StoreUnavailable,
    TurnLost,
)
from services.api.memory.migrate import migrate
from services.api.memory.names import check_metadata, check_session_id, check_ttl, idempotency_digest
from services.api.memory.owners import Owners, this_process
from services.api.memory.pending import PendingTurns
from services.api.memory.queries import Queries, read_cursor, write_cursor
from services.api.memory.records import History, NewTurn, Outcome, Page, Session, Swept, Turn, TurnHandle
from services.api.memory.rows import (
    begun_values,
    finished_values,
    read_past_turn,
    read_request_hash,
    read_session,
    read_turn,
    seal_system_prompt,
    session_values,
)
from services.api.memory.schema import Schema

_POLL_S = 0.05
_SWEEP_BATCH = 200


class SessionStore:
    """The memory of one process, which may share its database with others.

    Turns of one session must be begun by one task at a time: hold it in `TurnOrder` from before `load` until after
    `finish_turn`. Every method raises `StoreUnavailable` while the database cannot be used, and works again afterwards.
    """

    def __init__(
        self,
        url: str,
        keys: KeyRing | None = None,
        *,
        ttl_s: float | None = None,
        clock: Callable[[], float] = time.time,
        wait_s: float = 5.0,
    ) -> None:
        """`url` as `Database` takes it; `ttl_s`: of sessions that name none, `None`: they stay until they are deleted.

        `wait_s`: how long a query waits for a lock or a connection. Raises `DatabaseUrlError` and `BadTtl`.
        """
        self.database = Database(url, wait_s=wait_s)
        self._keys = keys or KeyRing()
        self._ttl_s = check_ttl(ttl_s)
        self._clock = clock
        schema = Schema()
        self._queries = Queries(schema, self.database.is_sqlite)
        owners = Owners(schema, this_process(), self.database.is_sqlite)
        self._pending = PendingTurns(self.database, self._queries, owners)
        self._eraser = Eraser(self.database)
        self._beating: asyncio.Task[None] | None = None

    # Life

    async def open(self) -> None:
        """Migrates, checks the keys, and aborts what dead processes left pending.

        Raises `SchemaTooNew`, `KeyMissing` and `StoreUnavailable`.
        """
        await self.database.open()
        try:
            await migrate(self.database)
            await self.database.warn_of_lost_durability()
            async with self.database.read() as connection:
                self._keys.require(await self._queries.key_ids(connection))
            await self._pending.open()
            if self.database.is_sqlite:  # a crash may have come between an erasure and its cleaning
                self._eraser.note()
                await self._eraser.clean()
        except BaseException:
            await self.database.close()
            raise
        self._beating = asyncio.create_task(self._pending.run())

    async def close(self) -> None:
        """Finishes what is being written; turns that are still pending become aborted."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
            self._beating = None
        with contextlib.suppress(StoreUnavailable):
            await self._pending.close(self._clock())
        await self.database.close()

    # Sessions

    def draft(
        self,
        tenant: str,
        session_id: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        ttl_s: float | None = None,
        system_prompt: str | None = None,
    ) -> Session:
        """A session that is not stored: `create` writes it, or its first `begin_turn`.

        Raises `BadSessionId`, `BadMetadata`, `BadTtl`.
        """
        now = self._clock()
        lives = check_ttl(ttl_s) or self._ttl_s
        return Session(
            tenant=tenant,
            id=check_session_id(session_id),
            created=now,
            expires=None if lives is None else now + lives,
            ttl_s=lives,
            metadata=json.loads(check_metadata(metadata)),
            system_prompt=system_prompt,
        )

    async def create(self, session: Session) -> Session:
        """Stores a draft; raises `SessionExists`."""
        async with self.database.write() as connection:
            return await self._insert(connection, session)

    async def get(self, tenant: str, session_id: str) -> Session:
        """Raises `SessionNotFound`, also for another tenant's session, and `BadSessionId`."""
        check_session_id(session_id)
        async with self.database.read() as connection:
            row = await self._queries.session(connection, tenant, session_id, self._clock())
        if row is None:
            raise SessionNotFound()
        return read_session(row, self._keys)

    async def list(self, tenant: str, *, limit: int = 50, cursor: str | None = None) -> Page:
        """A tenant's sessions, newest first; raises `BadCursor`."""
        before = read_cursor(cursor) if cursor else None
        async with self.database.read() as connection:
            rows = await self._queries.page(connection, tenant, self._clock(), limit + 1, before)
        sessions = tuple(read_session(row, self._keys) for row in rows[:limit])
        more = len(rows) > limit and sessions
        return Page(sessions, write_cursor(sessions[-1].created, sessions[-1].id) if more else None)

    async def turns(self, session: Session, *, after: int = 0, limit: int = 1000) -> tuple[Turn, ...]:
        """All turns of a session, aborted and pending ones too, in order; `after`: the last number already seen."""
        if session.row is None:
            return ()
        async with self.database.read() as connection:
            rows = await self._queries.turns(connection, session.row, after, limit)
        return tuple(read_turn(row, session.opened) for row in rows)

    async def delete(self, tenant: str, session_id: str) -> bool:
        """Erases a session: True when nothing of it is left (see `erase.py`), False when a sweep must finish that.

        A turn that runs in it meanwhile cannot be stored any more. Raises `SessionNotFound` and `BadSessionId`.
        """
        check_session_id(session_id)
        async with self.database.write() as connection:
            if not await self._queries.erase(connection, tenant, session_id):
                raise SessionNotFound()
        self._eraser.note()
        return await self._eraser.clean()

    async def sweep(self) -> Swept:
        """Erases expired sessions, aborts turns of dead processes, and finishes erasures that had to wait."""
        aborted = await self._pending.abort_dead()
        erased = 0
        while True:
            async with self.database.write() as connection:
                batch = await self._queries.erase_expired(connection, self._clock(), _SWEEP_BATCH)
            erased += batch
            if batch:
                self._eraser.note()
            if batch < _SWEEP_BATCH:
                break
        if self._eraser.is_owing:
            await self._eraser.clean()
        return Swept(erased, aborted)

    # Turns

    async def load(self, tenant: str, session_id: str, *, wait_s: float = 0.0) -> History | None:
        """A session with the turns that later prompts see, before its next turn; `None` when there is none of that name.

        Waits up to `wait_s` for a turn that another process runs in it, then raises `SessionBusy`. A pending turn of this
        process is one that was given up, since turns come one by one: it becomes aborted.
        """
        until, is_last_look = time.monotonic() + wait_s, False
        while True:
            session, rows, pending = await self._look(tenant, session_id)
            if session is None or session.row is None:
                return None
            if not pending:
                return History(session, tuple(read_past_turn(row, session.opened) for row in rows))
            if await self._pending.settled(session.row) or await self._pending.release(session.row, self._clock()):
                continue
            if is_last_look:
                raise SessionBusy()
            is_last_look = time.monotonic() >= until  # it may have ended since we looked
            await asyncio.sleep(_POLL_S)

    async def history(self, session: Session) -> History:
        """The turns of a stored session that later prompts see, oldest first, without waiting for anything."""
        async with self.database.read() as connection:
            rows = await self._queries.past_turns(connection, session.row) if session.row is not None else []
        return History(session, tuple(read_past_turn(row, session.opened) for row in rows))

    async def answered(self, session: Session, idempotency_key: str, request_hash: str) -> Turn | None:
        """The turn that this very request has made before; `None` when it is new, or its turn was aborted.

        Raises `IdempotencyConflict` when the key came with another request, `SessionBusy` while its turn runs.
        """
        digest = idempotency_digest(idempotency_key)
        if session.row is None:
            return None
        async with self.database.read() as connection:
            row = await self._queries.turn_of_key(connection, session.row, digest)
        if row is None:
            return None
        if not hmac.compare_digest(read_request_hash(row, session.opened) or "", request_hash):
            raise IdempotencyConflict(
                "this Idempotency-Key came with another request before: make a new key for each new request"
            )
        if row.status == "pending":
            raise SessionBusy()
        return read_turn(row, session.opened)

    async def begin_turn(self, session: Session, turn: NewTurn) -> TurnHandle:
        """Writes a pending turn, and the session if it is a draft; durable when it returns.

        `session` is what `load` gave, or a draft; before its first turn it may be given another system prompt. Raises
        `SessionBusy` when another process was quicker: load again; `SessionNotFound` when it was erased meanwhile.
        """
        now = self._clock()
        async with self.database.write() as connection:
            stored = session
            if session.row is None:
                try:
                    stored = await self._insert(connection, session)
                except SessionExists:
                    raise SessionChanged() from None
            row, seq = stored.row, stored.turns + 1
            assert row is not None
            expires = None if stored.ttl_s is None else now + stored.ttl_s
            if not await self._queries.advance(connection, row, stored.version, now, expires):
                await self._take_over(connection, stored, now, expires)
            if not session.turns and session.row is not None and session.system_prompt is not None:
                await self._queries.set_system_prompt(connection, row, seal_system_prompt(session))
            await self._pending.renew_if_due(connection)
            values = begun_values(turn, seq, stored.opened)
            mine = {"session": row, "status": "pending", "owner": self._pending.owner, "created": now}
            try:
                await self._queries.insert_turn(connection, {**values, **mine})
            except IntegrityError:  # its number or its key was taken in this moment, or the session erased
                raise SessionChanged() from None
        self._pending.begun(row, seq)
        stored = dataclasses.replace(stored, version=stored.version + 1, turns=seq, expires=expires)
        return TurnHandle(stored, seq, now)

    async def finish_turn(self, handle: TurnHandle, outcome: Outcome) -> None:
        """Closes a turn; durable when it returns, and carried through when the caller is cancelled meanwhile.

        May be called again after `StoreUnavailable`. Raises `SessionNotFound` when the session was erased meanwhile and
        `TurnLost` when another process has gone on without this turn.
        """
        row = handle.session.row
        assert row is not None
        task = asyncio.create_task(self._finish(handle, row, outcome))
        self._pending.finishing(row, task)
        await asyncio.shield(task)

    async def _finish(self, handle: TurnHandle, row: int, outcome: Outcome) -> None:
        session, seq, now = handle.session, handle.seq, self._clock()
        values = {**finished_values(outcome, seq, session.opened), "finished": now}
        expires = None if session.ttl_s is None else now + session.ttl_s
        self._pending.over(row, seq)
        async with self.database.write() as connection:
            # The session's row first, as everywhere: two transactions must not wait for each other.
            if not await self._queries.touch(connection, row, expires):
                raise SessionNotFound()
            if not await self._queries.finish_turn(connection, row, seq, self._pending.owner, values):
                raise TurnLost(
                    "another replica went on with this session while this turn was thought dead: its answer is not stored; "
                    "send the message again"
                )

    # Inside

    async def _look(self, tenant: str, session_id: str) -> tuple[Session | None, Sequence[Any], bool]:
        """A session, its turns that are over, and whether one is pending: the session first, so that its version is never
        newer than its turns."""
        check_session_id(session_id)
        async with self.database.read() as connection:
            row = await self._queries.session(connection, tenant, session_id, self._clock())
            if row is None:
                return None, (), False
            rows = await self._queries.past_turns(connection, row.row)
            pending = False
            # Numbers are taken one by one: when the latest turn is over, nothing was pending.
            if row.turns and not (rows and rows[-1].seq >= row.turns):
                pending = await self._queries.has_pending(connection, row.row)
                rows = await self._queries.past_turns(connection, row.row)  # it may have ended between the two looks
        return read_session(row, self._keys), rows, pending

    async def _insert(self, connection: AsyncConnection, session: Session) -> Session:
        sealer, wrapped = self._keys.new(session.tenant, session.id)
        values = session_values(session, check_metadata(session.metadata), sealer, wrapped)
        if await self._queries.drop_expired(connection, session.tenant, session.id, self._clock()):
            self._eraser.note()
        row = await self._queries.insert_session(connection, values)
        if row is None:
            raise SessionExists("there is a session of this name already: choose another id, or delete that one first")
        return dataclasses.replace(session, row=row, sealer=sealer)

    async def _take_over(
        self, connection: AsyncConnection, session: Session, now: float, expires: float | None
    ) -> None:
        """Why a number could not be taken: what a dead turn holds up goes on, anything else is raised."""
        row = session.row
        assert row is not None
        current = await self._queries.session(connection, session.tenant, session.id, now)
        if current is None or current.row != row:
            raise SessionNotFound()
        if current.version != session.version:
            raise SessionChanged()
        await self._pending.release_in(connection, row, now)
        if not await self._queries.advance(connection, row, session.version, now, expires):
            raise SessionBusy()
