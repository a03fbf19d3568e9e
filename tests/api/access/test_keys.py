"""Keys: hashed, found, ended; the file is refused when it is broken or open to others, and followed while serving."""

from __future__ import annotations

import json
import os
import stat
import sys
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.api.access.__main__ import main
from services.api.access.file import KeyStore, read_keys
from services.api.access.keys import SCOPES, Caller, KeyIndex, KeysFile, KeysFileError
from services.api.memory.tenancy import tenant_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "keys.json"


@pytest.fixture
def make(path: Path, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def make(*arguments: str, tenant: str = "ward 7", name: str = "nurse station") -> dict[str, str]:
        command = ["create", "--file", str(path), "--json", "--tenant", tenant, "--name", name, *arguments]
        assert main(command) == 0
        made: dict[str, str] = json.loads(capsys.readouterr().out)
        return made

    return make


def caller_of(store: KeyStore, key: str) -> Caller | str | None:
    return store.index.find(key.encode())


def test_a_key_is_shown_once_and_stored_nowhere(path: Path, make) -> None:
    made = make("--scopes", "chat,metrics", "--requests-per-minute", "30", "--concurrency", "2")
    assert len(made["key"]) >= 43
    assert made["key"] not in path.read_text()
    assert made["key"][8:20] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = caller_of(KeyStore(path), made["key"])
    assert found == Caller(made["id"], made["owner"], frozenset({"chat", "metrics"}), 30, 2)


def test_keys_of_one_tenant_open_the_same_sessions(path: Path, make) -> None:
    one, two = make(), make(name="night shift")
    other = make(tenant="ward 8")
    assert one["owner"] == two["owner"] != other["owner"]
    assert one["key"] != two["key"]


@settings(max_examples=200)
@given(st.binary(max_size=80))
def test_what_is_no_key_finds_nobody(given: bytes) -> None:
    file = KeysFile.new()
    assert KeyIndex(file, ["the only key that there is"]).find(given) is None


def test_a_plain_key_keeps_its_owner_and_has_all_scopes() -> None:
    found = caller_of(KeyStore(None, ["one", "two"]), "two")
    assert isinstance(found, Caller)
    assert (found.owner, found.scopes) == (tenant_of("two"), SCOPES)
    assert "two" not in found.id


def test_an_adopted_key_keeps_its_sessions(path: Path, make, monkeypatch: pytest.MonkeyPatch) -> None:
    old = "an-old-key-of-the-setting"
    monkeypatch.setattr(sys, "stdin", StringIO(old + "\n"))
    made = make("--adopt")
    assert made["key"] is None
    assert old not in path.read_text()
    found = caller_of(KeyStore(path, [old]), old)
    assert isinstance(found, Caller)
    assert (found.id, found.owner) == (made["id"], tenant_of(old))
    assert make(name="second")["owner"] == tenant_of(old)


def test_a_short_key_is_not_adopted(path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("hunter2\n"))
    assert main(["create", "--file", str(path), "--tenant", "a", "--name", "b", "--adopt"]) == 2
    assert "hunter2" not in capsys.readouterr().err
    assert not path.exists()


def test_expired_and_revoked_keys_say_so_to_their_holder(path: Path, make) -> None:
    made = make("--expires", "2d")
    index = KeyStore(path).index
    key, now = made["key"].encode(), datetime.now(UTC)
    assert isinstance(index.find(key, now + timedelta(days=1)), Caller)
    assert index.find(key, now + timedelta(days=3)) == "expired"
    assert main(["revoke", made["id"], "--file", str(path)]) == 0
    assert KeyStore(path).index.find(key) == "revoked"


def test_the_list_shows_everything_but_hashes(path: Path, make, capsys) -> None:
    made = make()
    assert main(["list", "--file", str(path)]) == 0
    table = capsys.readouterr().out
    stored = json.loads(path.read_text())["keys"][0]["hash"]
    assert made["id"] in table
    assert "nurse station" in table
    assert "active" in table
    assert main(["list", "--json", "--file", str(path)]) == 0
    assert stored not in table + capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["revoke", "nobody"],
        ["create", "--tenant", "ward 7", "--name", "nurse station"],
        ["create", "--tenant", "../x", "--name", "a"],
        ["create", "--tenant", "a", "--name", "b", "--concurrency", "-1"],
    ],
)
def test_what_cannot_be_done_changes_nothing(path: Path, make, capsys, arguments) -> None:
    make()
    before = path.read_bytes()
    assert main([*arguments, "--file", str(path)]) == 2
    assert capsys.readouterr().err.startswith("access: ")
    assert path.read_bytes() == before


def test_changes_are_taken_up_and_broken_files_are_not(path: Path, make, caplog) -> None:
    results: list[str] = []
    one = make()
    store = KeyStore(path, on_reload=results.append)
    two = make(name="second")
    store.refresh()
    assert isinstance(caller_of(store, two["key"]), Caller)
    good = path.read_bytes()
    for broken in (b"", b"{", b'{"keys": []}', good[:-30], good.replace(b'"format": 1', b'"format": 2')):
        path.write_bytes(broken)
        store.refresh()
        assert isinstance(caller_of(store, one["key"]), Caller)
    path.unlink()
    store.refresh()
    assert isinstance(caller_of(store, one["key"]), Caller)
    path.write_bytes(good)
    path.chmod(0o600)
    assert main(["revoke", one["id"], "--file", str(path)]) == 0
    store.refresh()
    assert caller_of(store, one["key"]) == "revoked"
    assert results == ["taken_up", *["refused"] * 6, "taken_up"]
    hashes = [entry["hash"] for entry in json.loads(good)["keys"]]
    assert not any(h in caplog.text for h in hashes)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(path: Path, make, mode) -> None:
    make()
    os.chmod(path, mode)
    with pytest.raises(KeysFileError, match="chmod 600"):
        read_keys(path)


def test_a_missing_file_names_the_command(path: Path) -> None:
    with pytest.raises(KeysFileError, match=r"services\.api\.access create"):
        KeyStore(path)
