"""Brings a database to the present schema, at start, in one transaction that only one process is in at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.api.memory.database import Database
from services.api.memory.errors import SchemaTooNew
from services.api.memory.migrations import Step, steps

log = logging.getLogger(__name__)

_LOCK = 6_237_017_245  # ours among PostgreSQL's advisory locks: any number, the same in every version
_TABLE = """
CREATE TABLE IF NOT EXISTS schema_steps (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    applied DOUBLE PRECISION NOT NULL
)
"""


async def migrate(database: Database, known: Sequence[Step] | None = None) -> int:
    """Applies the missing steps and returns the version reached.

    Raises `SchemaTooNew` when the database has steps that this program does not know, and changes nothing then.
    """
    wanted = steps() if known is None else known
    async with database.write() as connection:  # on SQLite the transaction is the lock
        if not database.is_sqlite:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        await connection.execute(text(_TABLE))
        reached = (await connection.execute(text("SELECT max(version) FROM schema_steps"))).scalar() or 0
        newest = wanted[-1].version
        if reached > newest:
            raise SchemaTooNew(
                f"the database has schema {reached} and this program knows up to {newest}: start the newer version that "
                "wrote it, or give it a database of its own"
            )
        for step in wanted:
            if step.version > reached:
                await _apply(connection, step, "sqlite" if database.is_sqlite else "postgresql")
    return newest


async def _apply(connection: AsyncConnection, step: Step, dialect: str) -> None:
    for statement in step.statements(dialect):
        await connection.execute(text(statement))
    await connection.execute(
        text("INSERT INTO schema_steps (version, name, applied) VALUES (:version, :name, :applied)"),
        {"version": step.version, "name": step.name, "applied": time.time()},
    )
    log.info("memory database: applied step %d, %s", step.version, step.name)
