"""`kill -9` of a serving process: what a client has read to its end is there, and nothing else is told as if it were."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.fakes import ROOT
from tests.running import frames_of

pytestmark = pytest.mark.kills

LIVES = 3
CHAT = "/v1/chat/completions"


@contextlib.contextmanager
def serving(url: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server's address and process; killed at the end unless it is dead already."""
    command = [sys.executable, "-m", "tests.api.memory.served", url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        address = next((line.strip() for line in process.stdout if line.startswith("http://")), "")
        assert address, "the server did not start"
        drain = threading.Thread(target=process.stdout.read, daemon=True)
        drain.start()
        try:
            yield address, process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
            drain.join(timeout=5)


def ask(address: str, text: str, stream: bool) -> str:
    """The answer as the client has it once it has read the response's end."""
    body = {"session_id": "s1", "messages": [{"role": "user", "content": text}], "stream": stream}
    answer = httpx.post(f"{address}{CHAT}", json=body, timeout=20)
    assert answer.status_code == 200, answer.text
    if not stream:
        content: str = answer.json()["choices"][0]["message"]["content"]
        return content
    return "".join(c["delta"].get("content") or "" for f in frames_of(answer.text) for c in f["choices"])


def test_killed_right_after_the_end_of_a_reply(url: str) -> None:
    told: list[tuple[str, str]] = []
    for life in range(LIVES):
        with serving(url) as (address, process):
            text = f"第{life}次"
            told.append((text, ask(address, text, stream=bool(life % 2))))
            process.send_signal(signal.SIGKILL)
    with serving(url) as (address, _):
        turns = httpx.get(f"{address}/v1/sessions/s1").json()["turns"]
    assert [(t["messages"][0]["content"], t["answer"], t["status"]) for t in turns] == [(*t, "done") for t in told]


def test_killed_at_any_time(url: str) -> None:
    dice, told = random.Random(), dict[str, str]()
    for life in range(LIVES):
        with serving(url) as (address, process):
            killer = threading.Timer(dice.uniform(0.05, 1.0), process.send_signal, [signal.SIGKILL])
            killer.start()
            with contextlib.suppress(httpx.TransportError):
                for n in range(1000):
                    told[text] = ask(address, text := f"{life}之{n}", stream=bool(n % 2))
            killer.join()
    with serving(url) as (address, _):
        turns = httpx.get(f"{address}/v1/sessions/s1").json()["turns"]
    assert len(told) > LIVES, "it was never given the time to talk"
    kept = {t["messages"][0]["content"]: t for t in turns}
    assert len(kept) == len(turns)
    for text, answer in told.items():
        assert (kept[text]["answer"], kept[text]["status"]) == (answer, "done")
    for text, turn in kept.items():
        assert turn["status"] == "done" or (turn["status"] == "aborted" and text not in told)
