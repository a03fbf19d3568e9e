"""The store's longer queries, each on a connection that somebody else opened."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, delete, exists, insert, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.api.memory.errors import BadCursor
from services.api.memory.records import OVER
from services.api.memory.schema import Schema


class Queries:
    """What is asked of the tables."""

    def __init__(self, schema: Schema, is_sqlite: bool) -> None:
        self._schema = schema
        self._is_sqlite = is_sqlite
        turns = schema.turns.c
        self._past = (
            turns.seq, turns.status, turns.messages, turns.answer, turns.tool_calls, turns.input_ids, turns.reply_ids,
            turns.format_digest,
        )  # fmt: skip

    async def session(self, connection: AsyncConnection, tenant: str, session_id: str, now: float) -> Row[Any] | None:
        """A session that has not expired."""
        sessions = self._schema.sessions
        named = and_(sessions.c.tenant == tenant, sessions.c.id == session_id)
        return (await connection.execute(select(sessions).where(named, self._lives(now)))).one_or_none()

    async def page(
        self, connection: AsyncConnection, tenant: str, now: float, limit: int, before: tuple[float, str] | None
    ) -> list[Row[Any]]:
        """A tenant's sessions, newest first."""
        c = self._schema.sessions.c
        query: Select[Any] = select(self._schema.sessions).where(c.tenant == tenant, self._lives(now))
        if before is not None:
            query = query.where(tuple_(c.created, c.id) < before)
        return list(await connection.execute(query.order_by(c.created.desc(), c.id.desc()).limit(limit)))

    async def past_turns(self, connection: AsyncConnection, row: int) -> list[Row[Any]]:
        """Turns that are over, without their thoughts."""
        c = self._schema.turns.c
        query = select(*self._past).where(c.session == row, c.status.in_(OVER)).order_by(c.seq)
        return list(await connection.execute(query))

    async def turns(self, connection: AsyncConnection, row: int, after: int, limit: int) -> list[Row[Any]]:
        c = self._schema.turns.c
        query = select(self._schema.turns).where(c.session == row, c.seq > after).order_by(c.seq).limit(limit)
        return list(await connection.execute(query))

    async def turn_of_key(self, connection: AsyncConnection, row: int, digest: str) -> Row[Any] | None:
        """The turn begun with an idempotency key, unless it was aborted."""
        c = self._schema.turns.c
        query = select(self._schema.turns).where(c.session == row, c.idempotency == digest, c.status != "aborted")
        return (await connection.execute(query)).one_or_none()

    async def has_pending(self, connection: AsyncConnection, row: int) -> bool:
        return bool((await connection.execute(select(self._pending(row)))).scalar())

    async def drop_expired(self, connection: AsyncConnection, tenant: str, session_id: str, now: float) -> bool:
        """An expired session gives its name free at once."""
        sessions = self._schema.sessions
        done = await connection.execute(
            delete(sessions).where(sessions.c.tenant == tenant, sessions.c.id == session_id, sessions.c.expires <= now)
        )
        return bool(done.rowcount)

    async def insert_session(self, connection: AsyncConnection, values: Mapping[str, Any]) -> int | None:
        """The new row's number; `None` when the name is taken."""
        sessions = self._schema.sessions
        statement: Any = (sqlite_insert if self._is_sqlite else postgres_insert)(sessions)
        statement = statement.values(**values).on_conflict_do_nothing(index_elements=["tenant", "id"])
        row: int | None = (await connection.execute(statement.returning(sessions.c.row))).scalar()
        return row

    async def advance(
        self, connection: AsyncConnection, row: int, version: int, now: float, expires: float | None
    ) -> bool:
        """Takes the next turn's number, if the session is as it was read and nothing is pending in it."""
        sessions = self._schema.sessions
        done = await connection.execute(
            update(sessions)
            .where(sessions.c.row == row, sessions.c.version == version, self._lives(now), ~self._pending(row))
            .values(version=version + 1, turns=sessions.c.turns + 1, expires=expires)
        )
        return done.rowcount == 1

    async def set_system_prompt(self, connection: AsyncConnection, row: int, sealed: bytes | None) -> None:
        sessions = self._schema.sessions
        await connection.execute(update(sessions).where(sessions.c.row == row).values(system_prompt=sealed))

    async def insert_turn(self, connection: AsyncConnection, values: Mapping[str, Any]) -> None:
        await connection.execute(insert(self._schema.turns).values(**values))

    async def touch(self, connection: AsyncConnection, row: int, expires: float | None) -> bool:
        """Prolongs a session, and locks its row before any of its turns. False: it is gone."""
        sessions = self._schema.sessions
        done = await connection.execute(update(sessions).where(sessions.c.row == row).values(expires=expires))
        return done.rowcount == 1

    async def finish_turn(
        self, connection: AsyncConnection, row: int, seq: int, owner: str, values: Mapping[str, Any]
    ) -> bool:
        """Closes a pending turn of `owner`, or its latest one that was aborted in its absence."""
        turns, later = self._schema.turns, self._schema.turns.alias()
        overtaken = exists().where(later.c.session == row, later.c.seq > seq)
        done = await connection.execute(
            update(turns)
            .where(turns.c.session == row, turns.c.seq == seq, turns.c.owner == owner)
            .where(or_(turns.c.status == "pending", and_(turns.c.status == "aborted", ~overtaken)))
            .values(**values)
        )
        return done.rowcount == 1

    async def abort_own(self, connection: AsyncConnection, owner: str, now: float, row: int | None = None) -> int:
        """Pending turns of `owner` that nobody will finish: of one session, or all of them."""
        turns = self._schema.turns
        query = update(turns).where(turns.c.status == "pending", turns.c.owner == owner)
        if row is not None:
            query = query.where(turns.c.session == row)
        return (await connection.execute(query.values(status="aborted", finished=now))).rowcount

    async def erase(self, connection: AsyncConnection, tenant: str, session_id: str) -> bool:
        """Deletes a session, expired or not, and its turns."""
        sessions = self._schema.sessions
        named = and_(sessions.c.tenant == tenant, sessions.c.id == session_id)
        found = await self._locked_rows(connection, named, 1)
        return await self._erase_rows(connection, found) == 1

    async def erase_expired(self, connection: AsyncConnection, now: float, most: int) -> int:
        """Deletes up to `most` sessions that have expired and in which no turn runs; returns how many."""
        sessions = self._schema.sessions
        which = and_(sessions.c.expires <= now, ~self._pending(sessions.c.row))
        found = await self._locked_rows(connection, which, most)
        return await self._erase_rows(connection, found)

    async def key_ids(self, connection: AsyncConnection) -> list[str]:
        """The keys that stored sessions are sealed under."""
        key_id = self._schema.sessions.c.key_id
        return [k for k in (await connection.execute(select(key_id).distinct())).scalars() if k is not None]

    async def _locked_rows(self, connection: AsyncConnection, which: ColumnElement[bool], most: int) -> list[int]:
        query = select(self._schema.sessions.c.row).where(which).limit(most).with_for_update()
        return list((await connection.execute(query)).scalars())

    async def _erase_rows(self, connection: AsyncConnection, rows: list[int]) -> int:
        """Turns first: on PostgreSQL a cascade would find each by itself."""
        if not rows:
            return 0
        await connection.execute(delete(self._schema.turns).where(self._schema.turns.c.session.in_(rows)))
        done = await connection.execute(delete(self._schema.sessions).where(self._schema.sessions.c.row.in_(rows)))
        return done.rowcount

    def _lives(self, now: float) -> ColumnElement[bool]:
        expires = self._schema.sessions.c.expires
        return or_(expires.is_(None), expires > now)

    def _pending(self, row: Any) -> Any:
        turns = self._schema.turns
        return exists().where(turns.c.session == row, turns.c.status == "pending")


def write_cursor(created: float, session_id: str) -> str:
    """A place in a tenant's list, opaque to clients."""
    return base64.urlsafe_b64encode(f"{created!r} {session_id}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[float, str]:
    """Inverts `write_cursor`; raises `BadCursor`."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        created, _, session_id = raw.decode("ascii").partition(" ")
        place = float(created)
    except (ValueError, binascii.Error):
        raise BadCursor(
            "this cursor is not one that a list has given: leave it out to begin at the first page"
        ) from None
    if not session_id or place != place or abs(place) == float("inf"):
        raise BadCursor("this cursor is not one that a list has given: leave it out to begin at the first page")
    return place, session_id
