"""Erasure: after it no word of a session is left in the database's files, as far as the database lets us.

SQLite: deleted content is overwritten with zeros (`secure_delete`), then the WAL is written back and cut to nothing. What
the file system or the disk keep of blocks given back is beyond a program's reach: encrypt the disk, or the sessions.

PostgreSQL: rows are deleted, then VACUUM takes them out of the tables. It does not overwrite: bytes can stay in a page until
something else is written there, and in the write-ahead log until its segments are used again. Where that matters, seal the
sessions (`crypto.py`): what stays is then ciphertext, and its key a row as short-lived as any; to be certain, rotate to a new
key afterwards and destroy the old one, or run `VACUUM FULL`, which writes the tables anew and locks them meanwhile.
"""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy import text

from services.api.memory.database import Database
from services.api.memory.errors import StoreUnavailable

log = logging.getLogger(__name__)

_TRIES = 20
_PAUSE_S = 0.1


class Eraser:
    """Removes what deleted rows leave behind. Deletions that come while it works share the next run."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = asyncio.Lock()
        self._asked = 0
        self._done = 0

    @property
    def is_owing(self) -> bool:
        """Whether rows were deleted whose remains are not yet removed: a sweep tries again."""
        return self._done < self._asked

    def note(self) -> None:
        """Rows were deleted."""
        self._asked += 1

    async def clean(self) -> bool:
        """Whether nothing is owed any more. Never raises for a database that is busy or gone: the next sweep is there."""
        wanted = self._asked
        async with self._lock:
            if self._done >= wanted:
                return True
            covers = self._asked
            try:
                clean = await (self._cut_wal() if self._database.is_sqlite else self._vacuum())
            except StoreUnavailable as error:
                log.warning("what deleted sessions leave behind is not removed yet: %s", error.reason)
                return False
            if clean:
                self._done = covers
            return clean

    async def _cut_wal(self) -> bool:
        """Waits for readers to leave: while one still reads old pages, the WAL cannot be cut.

        Waits outside of SQLite, which would keep every writer out meanwhile.
        """
        for _ in range(_TRIES):
            async with self._database.bare() as connection:
                patience = (await connection.execute(text("PRAGMA busy_timeout"))).scalar_one()
                await connection.execute(text("PRAGMA busy_timeout = 0"))
                try:
                    busy = (await connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))).one()[0]
                finally:
                    await connection.execute(text(f"PRAGMA busy_timeout = {int(patience)}"))
            if not busy:
                return True
            await asyncio.sleep(_PAUSE_S)
        log.warning("the WAL still holds deleted sessions, since another program reads the database: tried again later")
        return False

    async def _vacuum(self) -> bool:
        async with self._database.bare() as connection:
            await connection.execute(text("VACUUM (INDEX_CLEANUP ON) turns"))
            await connection.execute(text("VACUUM (INDEX_CLEANUP ON) sessions"))
        return True
