"""Key rotation: every data key is wrapped by the first key, and sessions that were stored unsealed are sealed.

Runs beside a serving process that knows the same keys. The sessions' contents are not touched unless they were unsealed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.api.memory.crypto import KeyRing, WrappedKey
from services.api.memory.database import Database
from services.api.memory.erase import Eraser
from services.api.memory.errors import BadKey
from services.api.memory.migrate import migrate
from services.api.memory.schema import SEALED_SESSION_COLUMNS, SEALED_TURN_COLUMNS, Schema

_BATCH = 200


@dataclass(frozen=True, slots=True)
class Rotated:
    """`busy`: unsealed sessions in which a turn runs at present: run it once more."""

    rewrapped: int
    sealed: int
    busy: int
    cleaned: bool


async def rotate(url: str, keys: KeyRing) -> Rotated:
    """Puts all sessions of a database under the first key.

    Raises `BadKey` without a key, `KeyMissing` when a session is sealed under a key that was not given, and what
    `migrate` raises. What was done before stays done: run it again.
    """
    if keys.first_id is None:
        raise BadKey("rotation needs a key: give the new one first, and the old ones behind it")
    database = Database(url)
    await database.open()
    try:
        await migrate(database)
        return await _Rotation(database, keys, keys.first_id).run()
    finally:
        await database.close()


class _Rotation:
    def __init__(self, database: Database, keys: KeyRing, first: str) -> None:
        self._database = database
        self._keys = keys
        self._first = first
        self._schema = Schema()
        self._rewrapped = self._sealed = self._busy = 0

    async def run(self) -> Rotated:
        after = 0
        while True:
            async with self._database.write() as connection:
                last = await self._batch(connection, after)
            if last is None:
                break
            after = last
        eraser = Eraser(self._database)
        eraser.note()  # data keys under the old key, and what was unsealed
        return Rotated(self._rewrapped, self._sealed, self._busy, await eraser.clean())

    async def _batch(self, connection: AsyncConnection, after: int) -> int | None:
        """Does some sessions behind row `after`; the last one's row, `None` at the end."""
        c = self._schema.sessions.c
        query = select(self._schema.sessions).where(c.row > after).order_by(c.row).limit(_BATCH).with_for_update()
        rows = list(await connection.execute(query))
        for row in rows:
            if row.key_id is None:
                await self._seal(connection, row)
            elif row.key_id != self._first:
                await self._rewrap(connection, row)
        return rows[-1].row if rows else None

    async def _rewrap(self, connection: AsyncConnection, row: Any) -> None:
        fresh = self._keys.rewrap(row.tenant, row.id, WrappedKey(row.key_id, bytes(row.data_key)))
        sessions = self._schema.sessions
        await connection.execute(
            update(sessions).where(sessions.c.row == row.row).values(key_id=fresh.key_id, data_key=fresh.sealed)
        )
        self._rewrapped += 1

    async def _seal(self, connection: AsyncConnection, row: Any) -> None:
        """The version moves on: who has read the session before must read it again before its next turn."""
        turns, sessions = self._schema.turns, self._schema.sessions
        columns = [turns.c[name] for name in SEALED_TURN_COLUMNS]
        found = list(
            await connection.execute(select(turns.c.seq, turns.c.status, *columns).where(turns.c.session == row.row))
        )
        if any(turn.status == "pending" for turn in found):
            self._busy += 1
            return
        sealer, wrapped = self._keys.new(row.tenant, row.id)
        assert wrapped is not None

        def sealed(values: Any, names: tuple[str, ...], seq: int) -> dict[str, bytes]:
            given = {name: getattr(values, name) for name in names}
            return {name: sealer.seal(name, bytes(v), seq) for name, v in given.items() if v is not None}

        for turn in found:
            await connection.execute(
                update(turns)
                .where(turns.c.session == row.row, turns.c.seq == turn.seq)
                .values(**sealed(turn, SEALED_TURN_COLUMNS, turn.seq))
            )
        await connection.execute(
            update(sessions)
            .where(sessions.c.row == row.row)
            .values(
                key_id=wrapped.key_id,
                data_key=wrapped.sealed,
                version=row.version + 1,
                **sealed(row, SEALED_SESSION_COLUMNS, 0),
            )
        )
        self._sealed += 1
