"""After an erasure the words are not in the files."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pytest

from services.api.memory.crypto import KeyRing
from services.api.memory.store import SessionStore
from tests.api.memory.conftest import Clock
from tests.api.memory.turns import one_turn
from tests.postgres import Postgres

TURNS, SESSIONS = 6, 20


def files_with(folder: Path, mark: bytes) -> set[str]:
    """Files that hold these bytes anywhere."""
    return {path.name for path in folder.rglob("*") if path.is_file() and mark in path.read_bytes()}


def words(name: str, dice: random.Random) -> str:
    """A text of any length in which its session's mark stands often: from a word to many pages."""
    return f"MARK-{name}-" * dice.choice([1, 3, 40, 400, 2000])


async def fill(store: SessionStore, names: Iterable[str], dice: random.Random) -> None:
    for _ in range(TURNS):  # turns of all sessions lie mixed in the file
        for name in names:
            await one_turn(store, "t", name, words(name, dice), words(name, dice), reasoning=words(name, dice))


@pytest.mark.parametrize("seed", range(3))
async def test_sqlite_keeps_nothing(tmp_path: Path, seed: int, clock: Clock) -> None:
    dice = random.Random(seed)
    names = [f"s{n:02}x" for n in range(SESSIONS)]
    store = SessionStore(f"sqlite:///{tmp_path}/memory.db", clock=clock)
    await store.open()
    await store.create(store.draft("t", "s99x", metadata={"m": "MARK-s99x-"}, system_prompt="MARK-s99x-", ttl_s=10))
    await fill(store, names, dice)
    assert files_with(tmp_path, b"MARK-s00x-")
    dice.shuffle(names)
    for name in names[: SESSIONS // 2]:
        assert await store.delete("t", name)
    clock.now += 20
    assert (await store.sweep()).sessions == 1
    for name in [*names[: SESSIONS // 2], "s99x"]:
        assert files_with(tmp_path, f"MARK-{name}-".encode()) == set(), name
        assert files_with(tmp_path, name.encode()) == set(), name
    kept = await store.load("t", names[-1])
    assert kept is not None
    assert len(kept.turns) == TURNS
    await store.close()
    for name in names[: SESSIONS // 2]:
        assert files_with(tmp_path, name.encode()) == set()


async def test_a_reader_delays_and_a_sweep_finishes(tmp_path: Path) -> None:
    store = SessionStore(f"sqlite:///{tmp_path}/memory.db")
    await store.open()
    await one_turn(store, "t", "s", "MARK", "MARK")
    reader = sqlite3.connect(tmp_path / "memory.db")
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM turns").fetchone()
    deletion = asyncio.create_task(store.delete("t", "s"))
    await asyncio.sleep(0.05)
    await one_turn(store, "t", "other", "q", "a")  # nobody else waits for it
    assert not deletion.done()
    assert not await deletion
    assert files_with(tmp_path, b"MARK")
    reader.close()
    await store.sweep()
    assert files_with(tmp_path, b"MARK") == set()
    await store.close()


async def test_the_next_start_finishes_an_erasure_that_a_crash_cut_short(tmp_path: Path) -> None:
    store = SessionStore(f"sqlite:///{tmp_path}/memory.db")
    await store.open()
    await one_turn(store, "t", "s", "MARK", "MARK")
    async with store.database.write() as connection:
        await store._queries.erase(connection, "t", "s")
    assert files_with(tmp_path, b"MARK")
    again = SessionStore(f"sqlite:///{tmp_path}/memory.db")
    await again.open()
    assert files_with(tmp_path, b"MARK") == set()
    await again.close()
    await store.close()


async def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    store = SessionStore(f"sqlite:///{tmp_path}/deep/er/memory.db")
    await store.open()
    await one_turn(store, "t", "s", "q", "a")
    found = list((tmp_path / "deep" / "er").iterdir())
    assert len(found) == 3
    assert all(os.stat(path).st_mode & 0o077 == 0 for path in found)
    await store.close()


async def test_postgresql_gives_no_row_back_and_sealed_sessions_leave_no_words(server: Postgres) -> None:
    """Without sealing, bytes may stay in pages and in the log: `erase.py` says so. With it there were never any."""
    with server.fresh() as url:
        store = SessionStore(url, KeyRing([os.urandom(32)]))
        await store.open()
        await fill(store, ["sa", "sb"], random.Random(1))
        assert await store.delete("t", "sa")
        await store.close()
        name = url.split("@/")[1].partition("?")[0]
        assert server.sql("SELECT count(*) FROM turns", name) == str(TURNS)
        assert server.sql("SELECT count(*) FROM sessions", name) == "1"
        server.sql("CHECKPOINT", name)
        assert files_with(server.data, b"MARK-sa-") == set()
