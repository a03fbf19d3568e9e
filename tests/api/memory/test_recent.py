"""What a process remembers of its last turns is never trusted: another replica, an erasure or a new key are noticed."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from services.api.memory.recent import RecentHistories
from services.api.memory.records import History, Session
from services.api.memory.store import SessionStore
from tests.api.memory.talking import ANSWERS, from_scratch, say, stored, talker, user
from tests.fakes import Pen
from tests.running import Factory, error_of


async def test_the_next_turn_does_not_read_the_database(
    url: str, in_process: Factory, pen: Pen, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    load = SessionStore.load

    async def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        looks.append(arguments)
        return await load(self, *arguments, **options)

    monkeypatch.setattr(SessionStore, "load", counted)
    engine = talker(pen)
    async with in_process(engine, database=url) as service:
        for text in ("一问？", "二问？", "三问？"):
            await say(service, text)
        assert len(looks) == 1
        texts = ("一问？", ANSWERS[0], "二问？", ANSWERS[1], "三问？")
        assert list(engine.asked[-1].prompt_ids) == from_scratch(pen.chat_format, *texts)


async def test_replicas_take_turns(url: str, in_process: Factory, pen: Pen) -> None:
    one, other = talker(pen), talker(pen, ANSWERS[2:])
    async with in_process(one, database=url) as here, in_process(other, database=url) as there:
        await say(here, "一问？")
        await say(there, "二问？")
        assert (await say(here, "三问？"))["session"]["turn"] == 3
        texts = ("一问？", ANSWERS[0], "二问？", ANSWERS[2], "三问？")
        assert list(one.asked[-1].prompt_ids) == from_scratch(pen.chat_format, *texts)


async def test_what_a_client_sends_is_never_judged_by_an_old_history(url: str, in_process: Factory, pen: Pen) -> None:
    """It sends the latest part of a conversation that went on elsewhere: to this process that looked like a forgery."""
    one, other = talker(pen), talker(pen, ANSWERS[1:])
    async with in_process(one, database=url) as here, in_process(other, database=url) as there:
        await say(here, "一问？")
        await say(there, "二问？")
        latest = [user("二问？"), {"role": "assistant", "content": ANSWERS[1]}, user("三问？")]
        answer = await here.chat(session_id="s1", messages=latest)
        assert answer.status_code == 200, answer.text
        assert answer.json()["session"]["turn"] == 3
        texts = ("一问？", ANSWERS[0], "二问？", ANSWERS[1], "三问？")
        assert list(one.asked[-1].prompt_ids) == from_scratch(pen.chat_format, *texts)
        forged = [user("二问？"), {"role": "assistant", "content": "假的。"}, user("四问？")]
        error_of(await here.chat(session_id="s1", messages=forged), 409, "history_conflict")


async def test_an_erased_session_begins_anew(url: str, in_process: Factory, pen: Pen) -> None:
    one, other = talker(pen), talker(pen)
    async with in_process(one, database=url) as here, in_process(other, database=url) as there:
        await say(here, "一问？")
        assert (await there.client.delete("/v1/sessions/s1")).json()["deleted"]
        assert (await say(here, "二问？"))["session"]["turn"] == 1
        assert list(one.asked[-1].prompt_ids) == from_scratch(pen.chat_format, "二问？")
        await here.client.delete("/v1/sessions/s1")
        error_of(await here.client.get("/v1/sessions/s1"), 404, "session_not_found")


async def test_a_retry_is_known_to_the_replica_that_did_not_answer(url: str, in_process: Factory, pen: Pen) -> None:
    async with in_process(talker(pen), database=url) as here, in_process(talker(pen), database=url) as there:
        await say(here, "一问？")
        body = {"session_id": "s1", "messages": [user("二问？")]}
        key = {"idempotency-key": "k"}
        first = (await there.client.post("/v1/chat/completions", json=body, headers=key)).json()
        again = (await here.client.post("/v1/chat/completions", json=body, headers=key)).json()
        assert again["session"] == first["session"] | {"replayed": True}


async def test_a_turn_of_a_session_sealed_meanwhile_is_sealed(in_process: Factory, pen: Pen, tmp_path: Path) -> None:
    import base64

    from services.api.memory.crypto import KeyRing
    from services.api.memory.rotate import rotate

    keys = base64.b64encode(b"k" * 32).decode()
    url = f"sqlite:///{tmp_path}/memory.db"
    async with in_process(talker(pen), database=url) as service:
        await say(service, "一问？")
    async with in_process(talker(pen), database=url, memory_keys=keys) as service:
        await say(service, "二问？")
        assert (await rotate(url, KeyRing.parse(keys))).sealed == 1
        await say(service, "三问藏好？")
        assert [turn["status"] for turn in (await stored(service))["turns"]] == ["done"] * 3
    rows = sqlite3.connect(tmp_path / "memory.db").execute("SELECT messages FROM turns").fetchall()
    assert not any("问" in bytes(row[0]).decode(errors="replace") for row in rows)


def test_only_so_many_are_kept_and_expired_ones_go() -> None:
    recent = RecentHistories(most=2)
    for n in range(3):
        recent.put(History(Session("t", f"s{n}", 0.0, float(n) or None, None), ()))
    assert (len(recent), recent.take("t", "s0")) == (2, None)
    recent.forget_expired(1.0)
    assert recent.take("t", "s1") is None
    assert recent.take("other", "s2") is None
    assert recent.take("t", "s2") is not None
    assert recent.take("t", "s2") is None
