"""A server that is full, loses its engine, or is told to end. These tests have servers of their own, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import psutil
import pytest

from tests.server import CHAT, Server, body_of, data_frames, until

pytestmark = pytest.mark.vllm

LONG = {"enable_thinking": False, "ignore_eos": True, "stream": True}


@contextmanager
def own_server(**settings: str) -> Iterator[Server]:
    server = Server(**settings)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def small() -> Iterator[Server]:
    """A server for two replies at once. The last test that uses it ends it."""
    with own_server(MAX_ACTIVE_REQUESTS="2", DRAIN_S="120") as server:
        yield server.wait_until_ready()


class LongStream:
    """A stream that is read by a thread, so that the test can do other things meanwhile."""

    def __init__(self, server: Server, max_tokens: int) -> None:
        self.frames: list[dict[str, Any] | str] = []
        self.failure: Exception | None = None
        self._body = body_of(LONG | {"max_tokens": max_tokens})
        self._url = server.url
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def wait_for_text(self) -> None:
        until(lambda: len(self.frames) > 3 or not self.is_running)
        assert self.is_running, self.frames

    def end(self) -> list[dict[str, Any] | str]:
        """All frames, once the server has ended the stream."""
        self._thread.join(180)
        assert not self.is_running
        if self.failure is not None:
            raise self.failure
        return self.frames

    def _read(self) -> None:
        try:
            with httpx.stream("POST", self._url + CHAT, json=self._body, timeout=180) as response:
                self.frames += [] if response.status_code == 200 else [response.read().decode()]
                for frame in data_frames(response.iter_lines()):
                    self.frames.append(frame)
        except Exception as error:  # noqa: BLE001 - raised again in the test's own thread
            self.failure = error


def chat(server: Server, **fields: Any) -> httpx.Response:
    return httpx.post(server.url + CHAT, json=body_of({"max_tokens": 2} | fields), timeout=180)


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    return response.status_code, response.json()["error"]["code"], response.headers.get("retry-after", "")


def tokens_of(frames: list[dict[str, Any] | str]) -> list[str]:
    return [
        c["finish_reason"] for f in frames if isinstance(f, dict) for c in f.get("choices", ()) if c["finish_reason"]
    ]


def test_a_full_house_says_so_at_once_and_opens_again(small: Server) -> None:
    body = body_of(LONG | {"max_tokens": 3500})
    with ExitStack() as stack:
        streams = [
            stack.enter_context(httpx.stream("POST", small.url + CHAT, json=body, timeout=180)) for _ in range(2)
        ]
        assert [stream.status_code for stream in streams] == [200, 200]
        for streamed in (True, False):
            assert error_of(chat(small, stream=streamed)) == (503, "server_overloaded", "1")
        assert small.status("/readyz") == 200
    until(lambda: small.metric("medthink_active_choices") == 0)
    assert chat(small).status_code == 200


def test_more_choices_than_the_house_ever_holds_are_the_requests_fault(small: Server) -> None:
    response = chat(small, n=3)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "n"


def test_a_dead_engine_ends_streams_honestly_and_comes_back_by_itself(small: Server) -> None:
    stream = LongStream(small, 3500)
    stream.wait_for_text()
    small.engine_core().kill()
    *text, error, done = stream.end()
    assert done == "[DONE]"
    assert isinstance(error, dict)
    assert error["error"]["code"] == "engine_unavailable"
    assert error["error"]["request_id"]
    assert tokens_of(text) == [], "a reply that was cut off must not look finished"

    assert small.status("/readyz") == 503
    assert small.status("/livez") == 200
    assert error_of(chat(small)) == (503, "engine_unavailable", "10")
    until(lambda: small.status("/readyz") == 200, limit_s=180)
    assert chat(small).status_code == 200
    assert small.is_running
    assert small.metric("medthink_engine_restarts_total") == 1
    until(lambda: small.metric("vllm:num_requests_running") == 0)


def test_on_sigterm_a_running_reply_is_finished_and_nothing_is_left_behind(small: Server) -> None:
    small.wait_until_ready()
    processes = [psutil.Process(small.pid), *small.children()]
    assert len(processes) > 1
    stream = LongStream(small, 1500)
    stream.wait_for_text()
    small.terminate()
    until(lambda: small.status("/readyz") == 503)
    assert error_of(chat(small)) == (503, "shutting_down", "5")
    assert error_of(chat(small, stream=True)) == (503, "shutting_down", "5")
    assert stream.is_running, "the reply was over before the server was asked"
    frames = stream.end()
    assert frames[-1] == "[DONE]"
    assert tokens_of(frames) == ["length"]
    assert small.wait() == 0
    until(lambda: not any(p.is_running() for p in processes))
    assert_the_log_is_whole(small)


def test_a_reply_that_outlasts_the_drain_is_ended_with_an_error() -> None:
    with own_server(DRAIN_S="0.2") as server:
        server.wait_until_ready()
        processes = [psutil.Process(server.pid), *server.children()]
        stream = LongStream(server, 3900)
        stream.wait_for_text()
        server.terminate()
        *text, error, done = stream.end()
        assert done == "[DONE]"
        assert isinstance(error, dict)
        assert error["error"]["code"] == "shutting_down"
        assert tokens_of(text) == []
        assert server.wait() == 0
        until(lambda: not any(p.is_running() for p in processes))
        assert_the_log_is_whole(server)


def test_sigterm_during_the_start_ends_it_and_leaves_nothing_behind() -> None:
    with own_server() as server:
        server.wait_for_url()
        until(lambda: any("EngineCore" in " ".join(cmdline(p)) for p in server.children()), limit_s=180)
        processes = [psutil.Process(server.pid), *server.children()]
        server.terminate()
        assert server.wait() == 0
        until(lambda: not any(p.is_running() for p in processes))
        assert_the_log_is_whole(server)


def test_a_model_that_cannot_be_loaded_is_one_line_and_exit_code_one() -> None:
    with own_server(MODEL="/nowhere") as server:
        assert server.wait() == 1
        assert "MEDTHINK_MODEL=/nowhere" in server.records()[-1]["message"]
        assert_the_log_is_whole(server)


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def assert_the_log_is_whole(server: Server) -> None:
    """Standard output and standard error hold JSON lines and nothing else, from the first byte to the last."""
    assert server.log_path.read_bytes().endswith(b"\n")
    for record in server.records():
        assert {"ts", "level", "request_id", "message"} <= record.keys(), record
        assert record["level"] in ("debug", "info", "warning", "error", "critical")
