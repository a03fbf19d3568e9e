"""The database fails under a running service: a clear error with a stable code, nothing lost, and no restart needed."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from services.api.errors import MemoryUnavailable
from services.api.memory.errors import StoreUnavailable
from services.api.memory.store import SessionStore
from tests.api.memory.talking import say, stored, talker, user
from tests.fakes import Pen
from tests.postgres import Postgres
from tests.running import Factory, error_of


async def test_postgres_goes_away_and_comes_back(server: Postgres, in_process: Factory, pen: Pen) -> None:
    with server.fresh() as url:
        async with in_process(talker(pen), database=url) as service:
            await say(service, "感冒怎么办？")
            server.stop()
            try:
                error_of(await service.chat(session_id="s1", messages=[user("好吗？")]), 503, "memory_unavailable")
                error_of(await service.client.get("/v1/sessions"), 503, "memory_unavailable")
                free = await service.chat(messages=[user("好吗？")])
                assert free.status_code == 200, "who needs no memory does not notice"
            finally:
                server.start()
            assert (await say(service, "能运动吗？"))["session"]["turn"] == 2
            assert [turn["status"] for turn in (await stored(service))["turns"]] == ["done", "done"]


async def test_a_database_that_is_away_at_the_start_is_waited_for(
    server: Postgres, in_process: Factory, pen: Pen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.memory.conversations.REOPEN_S", 0.1)
    with server.fresh() as url:
        server.stop()
        try:
            async with in_process(talker(pen), database=url) as service:
                error_of(await service.chat(session_id="s1", messages=[user("好吗？")]), 503, "memory_unavailable")
                server.start()

                async with asyncio.timeout(20):
                    while (await service.client.get("/v1/sessions")).status_code != 200:  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
                assert (await say(service, "能运动吗？"))["session"]["turn"] == 1
        finally:
            if not (server.data / "postmaster.pid").exists():
                server.start()


async def test_a_locked_file_is_told_and_forgotten(
    in_process: Factory, pen: Pen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = SessionStore.__init__

    def hasty(self: Any, *arguments: Any, **options: Any) -> None:
        patient(self, *arguments, **options | {"wait_s": 0.2})

    monkeypatch.setattr(SessionStore, "__init__", hasty)
    file = tmp_path / "memory.db"
    async with in_process(talker(pen), database=str(file)) as service:
        await say(service, "感冒怎么办？")
        locker = sqlite3.connect(file, isolation_level=None)
        locker.execute("BEGIN IMMEDIATE")
        error = error_of(await service.chat(session_id="s1", messages=[user("好吗？")]), 503, MemoryUnavailable.code)
        assert "retry" in error["message"] or "again" in error["message"]
        locker.execute("ROLLBACK")
        locker.close()
        assert (await say(service, "能运动吗？"))["session"]["turn"] == 2


async def test_an_answer_that_cannot_be_stored_is_not_told_as_if_it_were(
    in_process: Factory, pen: Pen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(self: Any, handle: Any, outcome: Any) -> None:
        raise StoreUnavailable("the disk is full: free some space, then send the message again", "full")

    async with in_process(talker(pen), database=str(tmp_path / "memory.db")) as service:
        with monkeypatch.context() as broken:
            broken.setattr(SessionStore, "finish_turn", full)
            error_of(await service.chat(session_id="s1", messages=[user("好吗？")]), 503, "memory_unavailable")
            streamed = await service.chat(session_id="s1", messages=[user("好吗？")], stream=True)
            assert '"memory_unavailable"' in streamed.text
            assert '"finish_reason":"stop"' not in streamed.text
        last = await say(service, "能运动吗？")
        assert [turn["status"] for turn in (await stored(service))["turns"]] == ["aborted", "aborted", "done"]
        assert last["session"]["turn"] == 3
