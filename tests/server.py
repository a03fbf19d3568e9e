"""A real server for tests: `python -m services.api` with the demo model in a process of its own, its log, and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "deploy" / "demo"
CHAT = "/v1/chat/completions"
QUESTION = "左心室EF值35%是什么意思？"
START_S = 240.0  # an engine starts in 15 s, and in a minute where others use the processor
ENDING_S = 150.0  # told to end during its start, it first finishes loading
_SETTINGS = {"HOST": "127.0.0.1", "PORT": "0", "MODEL": str(DEMO), "KV_CACHE_GIB": "0.25"}
# One thread: a model this small is no faster on two, and where others use the processor two wait for each other.
_ENGINE = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
_SHARED = pytest.StashKey["Server"]()


class Server:
    """One server, ready. Everything it writes to standard output and standard error is in `log_path`."""

    def __init__(self, **settings: str) -> None:
        """`settings` without their prefix: `Server(DRAIN_S="0.2")`. Raises `AssertionError` with the log's end."""
        outer = {k: v for k, v in os.environ.items() if not k.startswith("MEDTHINK_")}
        given = {f"MEDTHINK_{k}": v for k, v in (_SETTINGS | settings).items()}
        self._folder = tempfile.TemporaryDirectory(prefix="medthink-test-")
        settings = {"DATABASE": f"{self._folder.name}/memory.db", **settings}
        self.log_path = Path(self._folder.name) / "log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.api"],
                cwd=ROOT,
                env=outer | _ENGINE | given,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.url = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def lines(self) -> list[str]:
        """Every line so far, from the first byte; one that is still being written is left out."""
        text = self.log_path.read_text(encoding="utf-8", errors="strict")
        return text[: text.rfind("\n") + 1].splitlines()

    def records(self) -> list[dict[str, Any]]:
        """The lines as objects; a line that is no JSON object fails the test, and is shown."""
        found = []
        for line in self.lines():
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            assert isinstance(record, dict), f"not a JSON object: {line!r}"
            found.append(record)
        return found

    def wait_for_url(self) -> None:
        """Until the process listens, which is long before the engine is ready."""
        self._until(lambda: bool(self._listening()), "listen")
        self.url = f"http://127.0.0.1:{self._listening()[0]}"

    def wait_until_ready(self) -> Server:
        if not self.url:
            self.wait_for_url()
        self._until(lambda: self.status("/readyz") == 200, "become ready")
        return self

    def status(self, path: str) -> int:
        return httpx.get(self.url + path, timeout=30).status_code

    def metric(self, name: str) -> float:
        """Sum of a metric's samples over its labels; 0 when there is none yet."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        families = text_string_to_metric_families(text)
        return sum(s.value for family in families for s in family.samples if s.name == name)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def engine_core(self) -> psutil.Process:
        """The process that runs the model; vLLM gives it this title."""
        return next(child for child in self.children() if "EngineCore" in " ".join(child.cmdline()))

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit code. Raises `subprocess.TimeoutExpired` when it does not end."""
        return self.process.wait(ENDING_S)

    def stop(self) -> None:
        """Ends it however it can be ended, with its children, and removes its log."""
        left = self.children() if self.is_running else []
        try:
            if self.is_running:
                self.terminate()
                self.wait()
        finally:
            for process in (*left, *([self.process] if self.is_running else [])):
                if process.is_running() if isinstance(process, psutil.Process) else True:
                    process.kill()
            self.process.wait()
            self._folder.cleanup()

    def _listening(self) -> list[int]:
        connections = psutil.Process(self.pid).net_connections("tcp") if self.is_running else []
        return [c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN and c.laddr.ip == "127.0.0.1"]

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            until(lambda: condition() or not self.is_running, START_S)
            assert self.is_running
        except AssertionError as error:
            raise AssertionError(f"the server did not {what}; its log ends:\n{self._end_of_log()}") from error

    def _end_of_log(self) -> str:
        return "\n".join(self.lines()[-20:])


def body_of(fields: dict[str, Any]) -> dict[str, Any]:
    """A chat request: greedy and bounded, but for what `fields` says. `question` stands for `messages`."""
    given = dict(fields)
    messages = [{"role": "user", "content": given.pop("question", QUESTION)}]
    return {"messages": messages, "temperature": 0, "max_tokens": 600} | given


def until(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    """Waits for a condition that must come true."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"did not come true in {limit_s} s"
        time.sleep(0.05)


def shared(config: pytest.Config) -> Server:
    """One server for every folder of tests that only talks to it, started with the first that asks."""
    if _SHARED not in config.stash:
        server = config.stash[_SHARED] = Server()
        config.add_cleanup(server.stop)
    return config.stash[_SHARED].wait_until_ready()


def data_frames(lines: Iterator[str]) -> Iterator[dict[str, Any] | str]:
    """Objects of a server-sent event stream, and its closing "[DONE]" as it stands; comments are passed over."""
    for line in lines:
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)
        else:
            assert not line or line.startswith(":"), f"no server-sent event: {line!r}"
