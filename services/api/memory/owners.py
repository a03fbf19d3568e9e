"""Which process a pending turn belongs to, and whether that process still lives.

A turn is pending while its process generates it. When the process dies, its pending turns become `aborted`: at the next
start, at the next sweep, or when the next turn of the session meets one. Whether it has died is known
- at once, where the process ran on this machine, in this process namespace: its number is gone or was given away;
- else when its row was not renewed for `DEAD_AFTER_S`, by the database's clock. Rows are renewed only while turns run.
A process that was thought dead by mistake (a long pause) can still finish its turn as long as no later one was begun.
"""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Row, delete, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from services.api.memory.schema import Schema

BEAT_S = 5.0
DEAD_AFTER_S = 20.0


@dataclass(frozen=True, slots=True)
class Owner:
    """A process; `born` tells it from a later one with the same number."""

    id: str
    place: str
    pid: int
    born: str


def this_process() -> Owner:
    """A new owner: one for each store that is opened."""
    return Owner(uuid.uuid4().hex, _place(), os.getpid(), _born(os.getpid()) or "")


class Owners:
    """The owners table, for one owner: us."""

    def __init__(self, schema: Schema, me: Owner, is_sqlite: bool) -> None:
        self._schema = schema
        self.me = me
        self._is_sqlite = is_sqlite
        now = (
            "(julianday('now') - 2440587.5) * 86400.0" if is_sqlite else "extract(epoch FROM clock_timestamp())::float8"
        )
        self._now: ColumnElement[float] = literal_column(now)

    async def renew(self, connection: AsyncConnection) -> None:
        """Says that we live."""
        owners = self._schema.owners
        row = {"id": self.me.id, "place": self.me.place, "pid": self.me.pid, "born": self.me.born}
        statement: Any = (sqlite_insert if self._is_sqlite else postgres_insert)(owners).values(**row, seen=self._now)
        await connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"seen": self._now}))

    async def dead(self, connection: AsyncConnection) -> list[str]:
        """Owners of pending turns that live no more."""
        turns, owners = self._schema.turns, self._schema.owners
        pending = select(turns.c.owner).where(turns.c.status == "pending").distinct().subquery()
        rows = await connection.execute(
            select(
                pending.c.owner, owners.c.place, owners.c.pid, owners.c.born, (self._now - owners.c.seen).label("age")
            )
            .select_from(pending.outerjoin(owners, owners.c.id == pending.c.owner))
            .where(pending.c.owner != self.me.id)
        )
        return [row.owner for row in rows if self._is_dead(row)]

    async def abort_turns(self, connection: AsyncConnection, owners: list[str]) -> int:
        """Makes pending turns of these owners aborted ones; returns how many."""
        if not owners:
            return 0
        turns = self._schema.turns
        done = await connection.execute(
            update(turns)
            .where(turns.c.status == "pending", turns.c.owner.in_(owners))
            .values(status="aborted", finished=self._now)
        )
        return done.rowcount

    async def forget(self, connection: AsyncConnection) -> None:
        """Takes out our own row, and rows of others that have been silent for a day."""
        owners = self._schema.owners
        await connection.execute(delete(owners).where(owners.c.id == self.me.id))
        await self.forget_old(connection)

    async def forget_old(self, connection: AsyncConnection) -> None:
        """Rows of processes that have been silent for a day and have nothing pending."""
        owners, turns = self._schema.owners, self._schema.turns
        pending = select(turns.c.owner).where(turns.c.status == "pending")
        await connection.execute(delete(owners).where(owners.c.seen < self._now - 86400.0, owners.c.id.not_in(pending)))

    def _is_dead(self, row: Row[Any]) -> bool:
        if row.place is None or row.pid is None or row.age is None:
            return True  # whoever begins a turn writes its own row first
        if row.place == self.me.place:
            return bool(_born(row.pid) != row.born)
        return bool(row.age > DEAD_AFTER_S)


def _place() -> str:
    """Machine, boot and process namespace: two processes that have it in common can see each other's numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex  # nobody's but ours: others go by the time


def _born(pid: int) -> str | None:
    """When a process was started, in ticks since boot; `None` when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]
