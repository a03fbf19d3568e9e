"""SIGKILL at any moment: every acknowledged turn is there, and a pending one becomes aborted, never anything else."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import pytest

from services.api.memory.store import SessionStore
from tests.api.memory.talker import SESSIONS
from tests.fakes import ROOT

pytestmark = pytest.mark.kills

LIVES = 6


def live_and_die(url: str, life: int, seconds: float) -> list[list[str]]:
    """Runs the talker, kills it `seconds` after its database was open, and returns the whole lines that it said."""
    command = [sys.executable, "-m", "tests.api.memory.talker", url, str(life)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    return [line.split() for line in said.splitlines(keepends=True) if line.endswith("\n")]


async def test_nothing_acknowledged_is_lost(url: str) -> None:
    dice = random.Random()
    done: dict[tuple[str, int], str] = {}
    begun: dict[tuple[str, int], str] = {}
    for life in range(LIVES):
        for word, name, seq, mark in live_and_die(url, life, dice.uniform(0.05, 0.8)):
            (done if word == "done" else begun)[name, int(seq)] = mark
        store = SessionStore(url)
        await store.open()
        try:
            for n in range(SESSIONS):
                if await store.load("t", f"s{n}") is None:
                    continue
                turns = await store.turns(await store.get("t", f"s{n}"))
                assert [t.seq for t in turns] == list(range(1, len(turns) + 1))
                for turn in turns:
                    place = (f"s{n}", turn.seq)
                    mark = turn.request_id
                    assert turn.messages[0].content == mark
                    assert turn.status in ("done", "aborted")  # never pending: its process is dead
                    assert turn.answer == (mark if turn.status == "done" else "")
                    assert done.get(place, mark) == begun.get(place, mark) == mark
                    assert turn.status == "done" or place not in done
                assert {seq for name, seq in begun if name == f"s{n}"} <= {t.seq for t in turns}
        finally:
            await store.close()
    assert len(done) > LIVES, "the talker was never given the time to talk"
