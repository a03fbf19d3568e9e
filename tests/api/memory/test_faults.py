"""A database that is locked, full, gone or broken: one clear error, nothing lost, and recovery without a restart."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text

from services.api.memory.database import read_url
from services.api.memory.errors import DatabaseUrlError, SessionError, StoreUnavailable
from services.api.memory.store import SessionStore
from tests.api.memory.turns import answer, one_turn, question
from tests.postgres import Postgres


async def test_a_full_disk_loses_nothing_and_passes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SessionStore(f"sqlite:///{tmp_path}/memory.db")
    await store.open()
    session = await one_turn(store, "t", "s", "q0", "a0")
    found = await store.load("t", "s")
    assert found is not None
    pending = await store.begin_turn(found.session, question("q1"))
    async with store.database.bare() as connection:
        pages = (await connection.execute(text("PRAGMA page_count"))).scalar_one()
        await connection.execute(text(f"PRAGMA max_page_count = {pages}"))
    with pytest.raises(StoreUnavailable) as caught:
        await store.finish_turn(pending, answer("SECRET" * 20_000))
    assert (caught.value.reason, caught.value.code) == ("full", "memory_unavailable")
    with pytest.raises(StoreUnavailable):
        await store.begin_turn(store.draft("t", "new"), question("SECRET" * 20_000))
    assert "SECRET" not in str(caught.value) + str(caught.value.__cause__) + caplog.text
    assert getattr(caught.value.__cause__, "hide_parameters", False)
    assert [t.answer for t in (await store.history(session)).turns] == ["a0"]  # reading goes on
    async with store.database.bare() as connection:
        await connection.execute(text("PRAGMA max_page_count = 1000000"))
    await store.finish_turn(pending, answer("a1"))  # the same turn, once there is room
    after = await store.load("t", "s")
    assert after is not None
    assert [t.answer for t in after.turns] == ["a0", "a1"]
    assert await store.load("t", "new") is None
    await store.close()


async def test_a_locked_file_is_waited_for_and_then_refused(tmp_path: Path) -> None:
    store = SessionStore(f"sqlite:///{tmp_path}/memory.db", wait_s=0.2)
    await store.open()
    await one_turn(store, "t", "s", "q", "a")
    other = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable) as caught:
        await one_turn(store, "t", "s2", "q", "a")
    assert caught.value.reason == "locked"
    assert (await store.load("t", "s")) is not None
    waiting = asyncio.create_task(one_turn(store, "t", "s2", "q", "a"))
    await asyncio.sleep(0.05)
    other.execute("ROLLBACK")
    other.close()
    await waiting
    await store.close()


@pytest.mark.parametrize("content", [b"this is no database, but a long enough text file\n" * 100])
async def test_a_file_that_is_no_database_stops_the_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "memory.db").write_bytes(content)
    with pytest.raises(StoreUnavailable) as caught:
        await SessionStore(f"sqlite:///{tmp_path}/memory.db").open()
    assert caught.value.reason == "unreadable"
    assert (tmp_path / "memory.db").read_bytes() == content


async def test_a_folder_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable) as caught:
        await SessionStore(f"sqlite:///{tmp_path}/file/memory.db").open()
    assert caught.value.reason == "unreadable"


REFUSED = (
    "mysql://u:SECRET@h/d",
    "sqlite://",
    "sqlite:///:memory:",
    "://",
    "http://SECRET",
    "sqlite:///file:x?mode=memory",
)


@pytest.mark.parametrize("url", REFUSED)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(DatabaseUrlError) as caught:
        read_url(url)
    assert "SECRET" not in str(caught.value)


def test_urls_that_are_taken() -> None:
    assert read_url("data/memory.db").database == "data/memory.db"
    assert read_url("sqlite:////var/lib/m.db").database == "/var/lib/m.db"
    for name in ("postgres", "postgresql", "postgresql+psycopg"):
        assert read_url(f"{name}://u:p@h/d").drivername == "postgresql+asyncpg"


async def test_postgresql_gone_and_back(server: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with server.fresh() as url:
        store = SessionStore(url, wait_s=1)
        await store.open()
        await asyncio.gather(*(one_turn(store, "t", f"s{n}", "q", "a0") for n in range(8)))  # several connections
        found = await store.load("t", "s0")
        assert found is not None
        pending = await store.begin_turn(found.session, question("SECRET"))
        server.stop()
        try:
            for call in (store.load("t", "s0"), store.finish_turn(pending, answer("SECRET")), store.sweep()):
                with pytest.raises(StoreUnavailable) as caught:
                    await call
                assert caught.value.reason == "gone"
                assert "SECRET" not in str(caught.value) + str(caught.value.__cause__)
        finally:
            server.start()
        await store.finish_turn(pending, answer("a1"))  # the first call after it is back
        await asyncio.gather(*(store.load("t", f"s{n}") for n in range(8)))
        server.stop()
        server.start()  # a restart between two calls is not seen at all
        results = await asyncio.gather(*(store.load("t", f"s{n}") for n in range(8)))
        assert [[t.answer for t in r.turns] for r in results if r] == [["a0", "a1"], *[["a0"]] * 7]
        await store.close()
    assert "SECRET" not in caplog.text


async def test_postgresql_cuts_a_connection_in_the_middle(server: Postgres) -> None:
    with server.fresh() as url:
        store = SessionStore(url, wait_s=1)
        await store.open()
        with pytest.raises(StoreUnavailable):
            async with store.database.write() as connection:
                await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        await one_turn(store, "t", "s", "q", "a")
        await store.close()


async def test_a_database_that_is_not_there_stops_the_start(server: Postgres) -> None:
    for url in (server.url("nowhere"), "postgresql://u:SECRET@127.0.0.1:1/d"):
        with pytest.raises(StoreUnavailable) as caught:
            await SessionStore(url, wait_s=1).open()
        assert caught.value.reason == "gone"
        assert "SECRET" not in str(caught.value)


async def test_commits_wait_for_the_disk_whatever_the_role_says(server: Postgres) -> None:
    with server.fresh() as url:
        name = url.split("@/")[1].partition("?")[0]
        server.sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
        store = SessionStore(url)
        await store.open()
        async with store.database.write() as connection:
            assert (await connection.execute(text("SHOW synchronous_commit"))).scalar() == "on"
        await store.close()


async def test_sqlite_is_set_to_keep_and_to_forget(tmp_path: Path) -> None:
    store = SessionStore(f"sqlite:///{tmp_path}/memory.db")
    await store.open()
    async with store.database.write() as connection:
        found = {
            name: (await connection.execute(text(f"PRAGMA {name}"))).scalar()
            for name in ("journal_mode", "synchronous", "secure_delete", "foreign_keys")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1}
    await store.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_read_only_file(tmp_path: Path) -> None:
    store = SessionStore(f"sqlite:///{tmp_path}/memory.db")
    await store.open()
    await store.close()
    (tmp_path / "memory.db").chmod(0o400)
    with pytest.raises(SessionError):
        await SessionStore(f"sqlite:///{tmp_path}/memory.db").open()
