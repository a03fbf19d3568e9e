"""Numbered steps, applied once, under a lock, and never backwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import inspect, text

from services.api.memory.database import Database
from services.api.memory.errors import SchemaTooNew
from services.api.memory.migrate import migrate
from services.api.memory.migrations import Step, steps
from services.api.memory.schema import Schema
from services.api.memory.store import SessionStore


async def test_steps_make_the_tables_that_queries_see(store: SessionStore) -> None:
    def columns(connection: Any) -> dict[str, dict[str, bool]]:
        found = inspect(connection)
        return {t: {c["name"]: c["nullable"] for c in found.get_columns(t)} for t in found.get_table_names()}

    async with store.database.write() as connection:
        made = await connection.run_sync(columns)
    made.pop("schema_steps")
    made.pop("sqlite_sequence", None)
    seen = {t.name: {c.name: bool(c.nullable) for c in t.columns} for t in Schema().metadata.sorted_tables}
    assert {t: set(c) for t, c in made.items()} == {t: set(c) for t, c in seen.items()}
    keys = {("sessions", "row"), ("owners", "id")}  # SQLite calls a primary key nullable
    assert {(t, c): n for t, cs in made.items() for c, n in cs.items() if (t, c) not in keys} == {
        (t, c): n for t, cs in seen.items() for c, n in cs.items() if (t, c) not in keys
    }


async def test_many_processes_start_at_once(url: str) -> None:
    databases = [Database(url) for _ in range(6)]
    for database in databases:
        await database.open()
    try:
        assert await asyncio.gather(*(migrate(d) for d in databases)) == [steps()[-1].version] * 6
        async with databases[0].read() as connection:
            applied = (await connection.execute(text("SELECT version FROM schema_steps ORDER BY 1"))).scalars().all()
        assert applied == [s.version for s in steps()]
    finally:
        for database in databases:
            await database.close()


async def test_a_newer_database_is_refused_and_left_alone(url: str) -> None:
    def newer(dialect: str) -> list[str]:
        return ["CREATE TABLE from_the_future (n INTEGER)"]

    def broken(dialect: str) -> list[str]:
        return ["CREATE TABLE half (n INTEGER)", "CREATE TABLE half (n INTEGER)"]

    database = Database(url)
    await database.open()
    last = steps()[-1].version
    try:
        with pytest.raises(Exception, match="half"):
            await migrate(database, [*steps(), Step(last + 1, "broken", broken)])
        async with database.read() as connection:
            names = await connection.run_sync(lambda c: inspect(c).get_table_names())
        assert names == []  # a step is applied whole or not at all
        assert await migrate(database) == last
        assert await migrate(database, [*steps(), Step(last + 1, "newer", newer)]) == last + 1
    finally:
        await database.close()
    with pytest.raises(SchemaTooNew, match=f"schema {last + 1}"):
        await SessionStore(url).open()


def test_steps_are_numbered_without_gaps() -> None:
    assert [s.version for s in steps()] == list(range(1, len(steps()) + 1))
