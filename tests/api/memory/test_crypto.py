"""Encryption at rest: sealed values, wrong keys, rotation."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from services.api.memory.crypto import KeyRing, Sealer
from services.api.memory.errors import BadKey, KeyMissing, SealBroken, SessionChanged
from services.api.memory.rotate import rotate
from services.api.memory.store import SessionStore
from tests.api.memory.conftest import Opener
from tests.api.memory.turns import answer, one_turn, question
from tests.fakes import ROOT

OLD, NEW = os.urandom(32), os.urandom(32)


@given(st.binary(max_size=200), st.sampled_from(["answer", "messages"]), st.integers(0, 5))
def test_what_is_sealed_opens_in_its_place_only(data: bytes, column: str, seq: int) -> None:
    sealer, wrapped = KeyRing([OLD]).new("t", "s")
    sealed = sealer.seal(column, data, seq)
    again = KeyRing([NEW, OLD]).open("t", "s", wrapped)
    assert again.open(column, sealed, seq) == data
    assert sealer.seal(column, data, seq) != sealed
    for place in ((column, seq + 1), ("reasoning", seq)):
        with pytest.raises(SealBroken):
            sealer.open(place[0], sealed, place[1])
    for broken in (sealed[:-1], sealed[:11], b"", sealed[:-1] + bytes([sealed[-1] ^ 1])):
        with pytest.raises(SealBroken):
            sealer.open(column, broken, seq)


def test_a_data_key_is_bound_to_its_session() -> None:
    _, wrapped = KeyRing([OLD]).new("t", "s")
    for tenant, session in (("t", "other"), ("other", "s")):
        with pytest.raises(SealBroken):
            KeyRing([OLD]).open(tenant, session, wrapped)
    with pytest.raises(KeyMissing):
        KeyRing([NEW]).open("t", "s", wrapped)


def test_keys_are_read_from_text() -> None:
    a, b = base64.b64encode(OLD).decode(), base64.urlsafe_b64encode(NEW).decode()
    assert KeyRing.parse(f" {a}, {b},").first_id == KeyRing([OLD]).first_id
    assert KeyRing.parse("").first_id is None
    for bad in ("x", "AAAA", a[:-4], a + "AAAA", "药"):
        with pytest.raises(BadKey) as caught:
            KeyRing.parse(bad)
        assert bad not in caught.value.message.split("'")[0]


def test_without_keys_nothing_is_sealed() -> None:
    sealer, wrapped = KeyRing().new("t", "s")
    assert wrapped is None
    assert not sealer.encrypts
    assert sealer.open("answer", sealer.seal("answer", b"x")) == b"x"
    assert Sealer("t", "s", OLD).encrypts


async def test_nothing_that_was_said_is_stored_in_the_clear(open_store: Opener) -> None:
    store = await open_store(KeyRing([OLD]))
    draft = store.draft("t", "s", metadata={"m": "MARKmeta"}, system_prompt="MARKsystem")
    handle = await store.begin_turn(
        draft, question("MARKask", request_hash="MARKhash", idempotency_key="MARKkey", ids=(7,))
    )
    await store.finish_turn(handle, answer("MARKanswer", reasoning="MARKwhy", ids=(8,)))
    assert b"MARK" not in await _everything(store)
    assert (await store.answered(handle.session, "MARKkey", "MARKhash")) is not None
    plain = await open_store(KeyRing([OLD]))
    await one_turn(plain, "t", "s", "q2", "a2")
    found = await plain.load("t", "s")
    assert [t.answer for t in found.turns] == ["MARKanswer", "a2"]
    assert found.session.metadata == {"m": "MARKmeta"}


async def _everything(store: SessionStore) -> bytes:
    found = b""
    async with store.database.read() as connection:
        for table in ("sessions", "turns"):
            rows: Any = await connection.execute(text(f"SELECT * FROM {table}"))
            for row in rows:
                found += b"|".join(bytes(v) if isinstance(v, bytes | memoryview) else str(v).encode() for v in row)
    return found


async def test_a_missing_key_stops_the_start(open_store: Opener, url: str) -> None:
    store = await open_store(KeyRing([OLD]))
    await store.create(store.draft("t", "s"))
    for keys in (KeyRing(), KeyRing([NEW])):
        with pytest.raises(KeyMissing, match="rotate"):
            await SessionStore(url, keys).open()


async def test_rotation_beside_a_serving_process(open_store: Opener, url: str) -> None:
    plain = await open_store()
    await one_turn(plain, "t", "plain", "MARKask", "MARKanswer", reasoning="MARKwhy")
    stale = await plain.load("t", "plain")
    busy = await plain.begin_turn(plain.draft("t", "busy"), question("MARKbusy"))
    old = await open_store(KeyRing([OLD]))
    for n in range(3):
        await one_turn(old, "t", f"s{n}", f"q{n}", f"a{n}")
    serving = await open_store(KeyRing([OLD, NEW]))
    running = await serving.begin_turn((await serving.load("t", "s0")).session, question("q"))

    done = await rotate(url, KeyRing([NEW, OLD]))
    assert (done.rewrapped, done.sealed, done.busy) == (3, 1, 1)
    await serving.finish_turn(running, answer("while it rotated"))
    with pytest.raises(SessionChanged):  # would have written in the clear into a sealed session
        await plain.begin_turn(stale.session, question())
    await plain.finish_turn(busy, answer("MARKbusy"))
    done = await rotate(url, KeyRing([NEW, OLD]))
    assert (done.rewrapped, done.sealed, done.busy) == (0, 1, 0)

    fresh = await open_store(KeyRing([NEW]))
    assert [t.answer for t in (await fresh.load("t", "s0")).turns] == ["a0", "while it rotated"]
    assert [t.answer for t in (await fresh.load("t", "plain")).turns] == ["MARKanswer"]
    assert [t.reasoning for t in await fresh.turns(await fresh.get("t", "plain"))] == ["MARKwhy"]
    assert b"MARK" not in await _everything(fresh)


def _command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.api.memory", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**{k: v for k, v in os.environ.items() if k != "MEDTHINK_MEMORY_KEYS"}, **environment},
    )  # fmt: skip


async def test_the_command(open_store: Opener, url: str, tmp_path: Path) -> None:
    store = await open_store(KeyRing([OLD]))
    await one_turn(store, "t", "s", "q", "a")
    old, new = (base64.b64encode(key).decode() for key in (OLD, NEW))
    for keys, says in (("", "needs a key"), ("nonsense", "32 random bytes"), (new, "sealed under|KeyMissing|does not")):
        refused = _command("rotate", "--database", url, MEDTHINK_MEMORY_KEYS=keys)
        assert refused.returncode == 2
        assert any(part in refused.stderr for part in says.split("|"))
        assert refused.stderr.count("\n") == 1
    (tmp_path / "keys").write_text(f"{new}\n{old}\n")
    done = _command("rotate", "--database", url, "--keys-file", str(tmp_path / "keys"))
    assert (done.returncode, done.stdout) == (0, "data keys wrapped anew: 1; sessions sealed that were not: 0\n"), (
        done.stderr
    )
    fresh = await open_store(KeyRing([NEW]))
    assert (await fresh.load("t", "s")) is not None
    assert _command("rotate", "--database", "mysql://x/y", MEDTHINK_MEMORY_KEYS=new).returncode == 2
