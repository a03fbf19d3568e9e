"""Sessions and turns on both databases: what is stored comes back, to its owner only, in order, once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from services.api.events import Safety, Usage
from services.api.memory.errors import (
    BadCursor,
    BadIdempotencyKey,
    IdempotencyConflict,
    SessionBusy,
    SessionChanged,
    SessionExists,
    SessionNotFound,
    TurnLost,
)
from services.api.memory.records import NewTurn, Outcome
from services.api.memory.store import SessionStore
from services.contract.chat_format import Message, ToolCall
from tests.api.memory.conftest import Clock, Opener
from tests.api.memory.turns import answer, one_turn, question, said, user

ODD = "你好\x00 \ud800 <|im_end|> \U0001f9ea\n\tend"


async def test_a_turn_comes_back_as_it_was(store: SessionStore, clock: Clock) -> None:
    call = ToolCall(name="dose", arguments='{"drug": "布洛芬"}')
    new = NewTurn(
        (user(ODD), said("earlier"), Message(role="tool", content="42"), user("和?")),
        "req_9",
        ids=(1, 151_643, 2**31),
        format_digest="d1",
        adapter="cardio",
        adapter_version="v1",
    )
    session = store.draft("t", "s", metadata={"bed": [1, ODD]}, ttl_s=60, system_prompt=ODD)
    handle = await store.begin_turn(session, new)
    (pending,) = await store.turns(handle.session)
    assert (pending.status, pending.answer, pending.finished, pending.messages) == ("pending", "", None, new.messages)
    clock.now += 5
    outcome = Outcome(
        "blocked", ODD, "why " + ODD, (call,), (5, 6), "stop", True,
        Safety("block", ("dose", "allergy"), "policy-1"), Usage(10, 5, 3, 8),
    )  # fmt: skip
    await store.finish_turn(handle, outcome)

    loaded = await store.load("t", "s")
    assert loaded is not None
    assert loaded.session.metadata == {"bed": [1, ODD]}
    assert (loaded.session.system_prompt, loaded.session.expires, loaded.session.turns) == (ODD, clock.now + 60, 1)
    (past,) = loaded.turns
    assert (past.messages, past.answer, past.tool_calls, past.status) == (new.messages, ODD, (call,), "blocked")
    assert (past.input_ids, past.reply_ids, past.format_digest) == (new.ids, (5, 6), "d1")
    (turn,) = await store.turns(loaded.session)
    assert (turn.reasoning, turn.finish_reason, turn.thinking_truncated) == ("why " + ODD, "stop", True)
    assert (turn.safety, turn.usage) == (outcome.safety, outcome.usage)
    assert (turn.adapter, turn.adapter_version, turn.request_id) == ("cardio", "v1", "req_9")
    assert (turn.created, turn.finished) == (clock.now - 5, clock.now)
    assert await store.history(loaded.session) == loaded


async def test_thoughts_that_clients_send_back_are_not_kept(store: SessionStore) -> None:
    brought = Message(role="assistant", content="a", reasoning_content="secret")
    handle = await store.begin_turn(store.draft("t", "s"), NewTurn((user("q"), brought, user("r")), "r"))
    assert (await store.turns(handle.session))[0].messages[1].reasoning_content is None


async def test_history_holds_what_is_over_in_order(store: SessionStore) -> None:
    for n in range(12):
        found = await store.load("t", "s")
        session = found.session if found else store.draft("t", "s")
        handle = await store.begin_turn(session, question(f"q{n}"))
        await store.finish_turn(handle, Outcome("aborted" if n % 3 == 1 else "done", f"a{n}"))
    found = await store.load("t", "s")
    assert found is not None
    assert [t.answer for t in found.turns] == [f"a{n}" for n in range(12) if n % 3 != 1]
    assert [t.seq for t in await store.turns(found.session)] == list(range(1, 13))
    assert [t.seq for t in await store.turns(found.session, after=5, limit=3)] == [6, 7, 8]


async def test_a_session_belongs_to_its_tenant(store: SessionStore) -> None:
    await one_turn(store, "mine", "s", "q", "mine")
    await one_turn(store, "theirs", "s", "q", "theirs")
    mine = await store.load("mine", "s")
    assert mine is not None
    assert [t.answer for t in mine.turns] == ["mine"]
    assert await store.load("other", "s") is None
    for refused in (store.get("other", "s"), store.delete("other", "s")):
        with pytest.raises(SessionNotFound):
            await refused
    assert (await store.list("other")).sessions == ()
    await store.delete("mine", "s")
    assert (await store.get("theirs", "s")).turns == 1


async def test_a_name_is_given_once(store: SessionStore) -> None:
    first = await store.create(store.draft("t", "s", metadata={"n": 1}))
    with pytest.raises(SessionExists):
        await store.create(store.draft("t", "s"))
    with pytest.raises(SessionChanged):  # two drafts: somebody else's is stored now
        await store.begin_turn(store.draft("t", "s"), question())
    assert (await store.get("t", "s")).metadata == {"n": 1}
    assert await store.turns(first) == ()


async def test_pages_hold_each_session_once(store: SessionStore, clock: Clock) -> None:
    for n in range(23):
        clock.now += n % 3 == 0  # several in one moment
        await store.create(store.draft("t", f"s{n:02}"))
    await store.create(store.draft("other", "x"))
    seen, cursor = [], None
    while True:
        page = await store.list("t", limit=5, cursor=cursor)
        seen += [s.id for s in page.sessions]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(seen, reverse=True) == seen
    assert len(set(seen)) == 23
    for bad in ("x", "AAAA", "bmFuIHg", "é", "a" * 5000):
        with pytest.raises(BadCursor):
            await store.list("t", cursor=bad)


async def test_time_takes_a_session_that_nobody_talks_to(store: SessionStore, clock: Clock) -> None:
    await store.begin_turn(store.draft("t", "old", ttl_s=100), question())
    await one_turn(store, "t", "kept", "q", "a")
    await store.create(store.draft("t", "short", ttl_s=10))
    clock.now += 60
    found = await store.load("t", "old")
    assert found is not None
    handle = await store.begin_turn(found.session, question())  # a turn prolongs it
    clock.now += 60
    await store.finish_turn(handle, answer())
    clock.now += 99
    assert (await store.get("t", "old")).turns == 2
    with pytest.raises(SessionNotFound):
        await store.get("t", "short")
    assert {s.id for s in (await store.list("t")).sessions} == {"old", "kept"}
    fresh = await store.create(store.draft("t", "short"))  # its name is free before any sweep
    assert fresh.version == 0
    clock.now += 2
    assert (await store.sweep()).sessions == 1
    assert [s.id for s in (await store.list("t")).sessions] == ["short", "kept"]
    assert await store.load("t", "old") is None


async def test_the_sweep_waits_for_a_running_turn(store: SessionStore, clock: Clock) -> None:
    handle = await store.begin_turn(store.draft("t", "s", ttl_s=1), question())
    clock.now += 10
    assert (await store.sweep()).sessions == 0
    await store.finish_turn(handle, answer())
    assert (await store.load("t", "s")) is not None


async def test_a_sweep_takes_more_than_a_batch(store: SessionStore, clock: Clock) -> None:
    for n in range(430):
        await store.create(store.draft("t", f"s{n}", ttl_s=1))
    clock.now += 5
    assert (await store.sweep()).sessions == 430


async def test_a_retry_gets_the_stored_answer(store: SessionStore) -> None:
    draft = store.draft("t", "s")
    assert await store.answered(draft, "key-1", "hash-1") is None
    handle = await store.begin_turn(draft, question(idempotency_key="key-1", request_hash="hash-1"))
    with pytest.raises(SessionBusy):
        await store.answered(handle.session, "key-1", "hash-1")
    await store.finish_turn(handle, answer("stored", reasoning="thought"))
    again = await store.answered(handle.session, "key-1", "hash-1")
    assert again is not None
    assert (again.answer, again.reasoning) == ("stored", "thought")
    assert await store.answered(handle.session, "key-2", "hash-1") is None
    with pytest.raises(IdempotencyConflict):
        await store.answered(handle.session, "key-1", "hash-2")
    other = await store.create(store.draft("t", "other"))
    assert await store.answered(other, "key-1", "hash-2") is None  # keys are a session's own
    for bad in ("", " ", "k" * 256):
        with pytest.raises(BadIdempotencyKey):
            await store.answered(handle.session, bad, "h")


async def test_an_aborted_turn_frees_its_key(store: SessionStore) -> None:
    new = question(idempotency_key="k", request_hash="h")
    handle = await store.begin_turn(store.draft("t", "s"), new)
    await store.finish_turn(handle, Outcome("aborted"))
    found = await store.load("t", "s")
    assert found is not None
    assert await store.answered(found.session, "k", "h") is None
    await store.finish_turn(await store.begin_turn(found.session, new), answer())
    assert await store.answered(found.session, "k", "h") is not None


async def test_of_two_replicas_one_begins(open_store: Opener) -> None:
    a, b = await open_store(), await open_store()
    await one_turn(a, "t", "s", "q", "a")
    seen_by_a, seen_by_b = await a.load("t", "s"), await b.load("t", "s")
    handle = await a.begin_turn(seen_by_a.session, question())
    with pytest.raises(SessionChanged):
        await b.begin_turn(seen_by_b.session, question())
    with pytest.raises(SessionBusy):
        await b.load("t", "s", wait_s=0.1)
    waiting = asyncio.create_task(b.load("t", "s", wait_s=10))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await a.finish_turn(handle, answer("from a"))
    seen = await waiting
    assert [t.answer for t in seen.turns] == ["a", "from a"]
    await b.finish_turn(await b.begin_turn(seen.session, question()), answer("from b"))
    with pytest.raises(SessionChanged):  # over and done, but not in what a has seen
        await a.begin_turn(handle.session, question())


async def test_replicas_racing_never_interleave(open_store: Opener) -> None:
    stores = [await open_store() for _ in range(3)]
    begun: list[int] = []

    async def talk(store: SessionStore) -> None:
        done = 0
        while done < 5:
            try:
                found = await store.load("t", "s", wait_s=5)
                session = found.session if found else store.draft("t", "s")
                handle = await store.begin_turn(session, question())
            except SessionBusy:
                await asyncio.sleep(0.01)
                continue
            assert found is None or len(found.turns) == handle.seq - 1  # it has seen all that came before
            begun.append(handle.seq)
            await store.finish_turn(handle, answer())
            done += 1

    await asyncio.gather(*(talk(store) for store in stores))
    assert begun == list(range(1, 16))


async def test_a_turn_given_up_in_this_process_becomes_aborted(store: SessionStore) -> None:
    await store.begin_turn(store.draft("t", "s"), question("lost"))
    found = await store.load("t", "s")
    assert found is not None
    handle = await store.begin_turn(found.session, question("next"))
    assert [t.status for t in await store.turns(handle.session)] == ["aborted", "pending"]


async def test_a_dead_replicas_turn_becomes_aborted_and_may_not_come_back(open_store: Opener) -> None:
    dead, alive = await open_store(), await open_store()
    handle = await dead.begin_turn(dead.draft("t", "s"), question("lost"))
    with pytest.raises(SessionBusy):
        await alive.load("t", "s")
    await _silence(dead)
    found = await alive.load("t", "s")
    assert found.turns == ()
    # It was only slow: as long as nobody has gone on, its answer counts.
    await dead.finish_turn(handle, answer("late"))
    found = await alive.load("t", "s")
    assert [t.answer for t in found.turns] == ["late"]

    second = await dead.begin_turn(found.session, question("lost again"))
    await _silence(dead)
    await alive.sweep()
    found = await alive.load("t", "s")
    await alive.finish_turn(await alive.begin_turn(found.session, question()), answer("went on"))
    with pytest.raises(TurnLost):
        await dead.finish_turn(second, answer("too late"))
    assert [t.status for t in await alive.turns(found.session)] == ["done", "aborted", "done"]


async def _silence(store: SessionStore) -> None:
    """As if its process, on another machine, had been gone for long."""
    async with store.database.write() as connection:
        await connection.execute(
            text("UPDATE owners SET place = 'elsewhere', seen = seen - 3600 WHERE id = :id"),
            {"id": store._pending.owner},
        )


async def test_closing_aborts_what_is_pending(open_store: Opener) -> None:
    first = await open_store()
    await first.begin_turn(first.draft("t", "s"), question())
    await first.close()
    second = await open_store()
    found = await second.load("t", "s")
    assert [t.status for t in await second.turns(found.session)] == ["aborted"]
    await first.open()  # its closing at the end of the test needs it open


async def test_a_cancelled_finish_is_carried_through(store: SessionStore) -> None:
    handle = await store.begin_turn(store.draft("t", "s"), question())
    task = asyncio.create_task(store.finish_turn(handle, answer("kept")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    found = await store.load("t", "s")
    assert found is not None
    assert [t.answer for t in found.turns] == ["kept"]


async def test_an_erased_session_takes_no_answer(store: SessionStore) -> None:
    handle = await store.begin_turn(store.draft("t", "s"), question())
    await store.delete("t", "s")
    await one_turn(store, "t", "s", "q", "the next one's")  # another session of that name
    with pytest.raises(SessionNotFound):
        await store.finish_turn(handle, answer("late"))
    found = await store.load("t", "s")
    assert found is not None
    assert [t.answer for t in found.turns] == ["the next one's"]


async def test_many_sessions_at_once(store: SessionStore) -> None:
    await asyncio.gather(*(one_turn(store, "t", f"s{n}", "q", f"a{n}") for n in range(64)))
    for n in (0, 31, 63):
        found: Any = await store.load("t", f"s{n}")
        assert [t.answer for t in found.turns] == [f"a{n}"]
