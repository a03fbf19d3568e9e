"""A small API on loopback that answers as told: what `answer` and the judge meet, without an engine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VERSION = "0123456789abcdef"
ADAPTER = f"kids@{VERSION}"


@dataclass
class FakeApi:
    """`asked` holds every chat body in order of arrival; `fail` may return (status, headers, body) for one of them."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    fail: Callable[[dict[str, Any]], tuple[int, dict[str, str], Any] | None] = lambda body: None
    reply: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: chat_reply(body)
    busiest: int = 0
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, change: int) -> None:
        with self._lock:
            self._open += change
            self.busiest = max(self.busiest, self._open)


def chat_reply(
    body: dict[str, Any], text: str = "请立即就诊。", reasoning: str = "首先看症状。其次排除。最后就医。"
) -> dict[str, Any]:
    name, _, version = body["model"].partition("@")
    message = {"role": "assistant", "content": text, "reasoning_content": reasoning, "reasoning": reasoning}
    return {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "thinking_truncated": False}],
        "usage": {"completion_tokens": 12, "completion_tokens_details": {"reasoning_tokens": 7}},
        "safety": {"verdict": "pass", "rules": [], "policy": "p1"},
        "adapter": {"name": name, "version": version} if version else None,
    }


@contextmanager
def fake_api() -> Iterator[FakeApi]:
    api = FakeApi()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = {"name": "kids", "current": VERSION, "versions": [{"version": VERSION, "state": "ready"}]}
            known["versions"].append({"version": "f" * 16, "state": "refused", "reason": "rank 64 is above 32"})  # type: ignore[attr-defined]
            cards = [{"id": "Qwen3-1.7B"}, {"id": "kids"}]
            answers = {"/v1/adapters": {"data": [known]}, "/v1/models": {"data": cards}, "/version": {"version": "1.2"}}
            self._send(200, {}, answers[self.path])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            api.count(+1)
            try:
                failure = api.fail(body)
                if failure is None:
                    api.asked.append(body)
                    failure = (200, {}, api.reply(body))
            finally:
                api.count(-1)
            self._send(*failure)

        def _send(self, status: int, headers: dict[str, str], body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
