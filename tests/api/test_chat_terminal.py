"""`python -m services.api.chat`: what the terminal shows, against a server that misbehaves and against ours."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from services.api.chat import __main__ as chat
from services.api.chat.client import ChatError, Client, Piece
from services.api.chat.screen import Screen
from tests.fakes import ROOT, FakeEngine
from tests.running import Factory, until
from tests.terminal import CTRL_C, Terminal


def event(delta: dict[str, Any], **more: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}], **more}).encode() + b"\n\n"


REPLY = [
    event({"role": "assistant", "content": ""}),
    b": keep-alive\n\n",
    event({"reasoning_content": "先想。", "reasoning": "先想。"}),
    event({"content": "请复查"}),
    event({"content": "。"}),
    event({}, safety={"verdict": "pass", "rules": [], "policy": "p"}),
    b"data: [DONE]\n\n",
]


class Stub(ThreadingHTTPServer):
    """A server that streams `reply` and keeps the bodies that it got; `sessions` false: it has no such route."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply: list[bytes] = REPLY
        self.refusal: tuple[int, dict[str, Any]] | None = None
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        self._json(200, {"data": [{"id": "m"}]}) if self.path == "/v1/models" else self._json(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/chat/completions":
            self._json(404, {})
            return
        self.server.bodies.append(body)
        self.server.keys.append(self.headers["authorization"])
        if self.server.refusal is not None:
            self._json(*self.server.refusal)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for part in self.server.reply:
            self.wfile.write(part)
            self.wfile.flush()

    def _json(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Questions through a pipe, and what is shown."""
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def go(*questions: str, options: tuple[str, ...] = ()) -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{q}\n" for q in questions)))
        code = chat.main(["--url", stub.url, *options])
        return code, capsys.readouterr().out

    return go


def test_thought_and_answer_are_shown_without_colours_in_a_pipe(run: Run) -> None:
    code, shown = run("头痛？")
    assert code == 0
    assert "[思考] 先想。\n\n请复查。\n" in shown
    assert "AI 生成" in shown
    assert "\x1b" not in shown


def test_a_hidden_thought_is_not_shown_and_none_is_not_asked_for(run: Run, stub: Stub) -> None:
    assert "先想" not in run("头痛？", options=("--hide-thinking",))[1]
    assert stub.bodies[-1]["enable_thinking"] is True
    run("头痛？", options=("--no-think",))
    assert stub.bodies[-1]["enable_thinking"] is False


def test_without_sessions_the_history_goes_along(run: Run, stub: Stub) -> None:
    run("一？", "二？")
    assert [m["content"] for m in stub.bodies[1]["messages"]] == ["一？", "请复查。", "二？"]
    run("一？", "/new", "二？")
    assert [m["content"] for m in stub.bodies[-1]["messages"]] == ["二？"]


def test_a_block_is_marked_and_only_its_text_is_remembered(run: Run, stub: Stub) -> None:
    blocked = {"verdict": "block", "rules": ["dosage"], "policy": "p"}
    stub.reply = [
        event({"content": "坏话。"}),
        event({"content": "请就医。"}, safety={**blocked, "replace": "请就医。"}),
        event({}, safety=blocked),
        b"data: [DONE]\n\n",
    ]
    shown = run("一？", "二？")[1]
    assert "坏话。\n以上内容已被安全审查收回，请以下文为准\n请就医。\n" in shown
    assert stub.bodies[1]["messages"][1]["content"] == "请就医。"


def test_an_urgent_answer_is_marked(run: Run, stub: Stub) -> None:
    safety = {"verdict": "amend", "rules": ["missing_emergency_advice"], "policy": "p"}
    stub.reply = [event({"content": "请立即就医。"}), event({}, safety=safety), b"data: [DONE]\n\n"]
    assert "紧急提示" in run("胸痛")[1]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (503, {"error": {"message": "engine starts", "code": "c", "request_id": "r1"}}, "engine starts (request id r1)"),
        (500, {}, "HTTP status 500"),
        (400, {"error": "odd"}, "HTTP status 400"),
    ],
)  # fmt: skip
def test_a_refusal_is_shown_and_the_talk_goes_on(run: Run, stub: Stub, status, body, expected) -> None:
    stub.refusal = (status, body)
    code, shown = run("一？", "二？")
    assert code == 0
    assert shown.count(expected) == 2


@pytest.mark.parametrize(
    "end", [b"", b'data: {"error": {"message": "the engine stopped"}}\n\ndata: [DONE]\n\n', b"data: {x\n\n"]
)
def test_a_stream_that_breaks_is_told_and_not_remembered(run: Run, stub: Stub, end) -> None:
    stub.reply = [event({"content": "半"}), end]
    shown = run("一？", "二？")[1]
    assert "\n! " in shown
    assert [m["content"] for m in stub.bodies[1]["messages"]] == ["二？"]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_chunks_of_any_size_give_the_same(run: Run, stub: Stub, size: int) -> None:
    whole = run("头痛？")[1]
    text = b"".join(REPLY).replace(b"\n", b"\r\n")
    stub.reply = [text[n : n + size] for n in range(0, len(text), size)]
    assert run("头痛？")[1] == whole


def test_what_a_model_writes_cannot_steer_the_terminal(run: Run, stub: Stub) -> None:
    stub.reply = [event({"content": "\x1b]0;owned\x07\x1b[2J\x9b31m好\r"}), b"data: [DONE]\n\n"]
    shown = run("一？")[1]
    assert not set(shown) & set("\x1b\x07\x9b\r")


def test_the_key_comes_from_the_environment(run: Run, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k1")
    run("一？")
    monkeypatch.setenv("MEDTHINK_API_KEY", "k2")
    run("一？")
    assert stub.keys == ["Bearer k1", "Bearer k2"]


def test_an_unknown_model_ends_it_with_the_known_ones(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(options=("--model", "x"))[0] == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "ftp://x", "::"])
def test_a_server_that_is_not_there_is_one_line(url, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat.main(["--url", url]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interrupt_stops_the_answer_and_not_the_talk(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces after it are never asked for; the next question is."""
    asked: list[Any] = []
    closed: list[bool] = []

    def pieces(self: Client, body: dict[str, Any]) -> Iterator[Piece]:
        asked.append(body)
        try:
            yield Piece(content="半句")
            if len(asked) == 1:
                raise KeyboardInterrupt
        finally:
            closed.append(True)

    monkeypatch.setattr(Client, "chat", pieces)
    monkeypatch.setattr(sys, "stdin", io.StringIO("一？\n二？\n"))
    out = io.StringIO()
    options = chat._parser().parse_args(["--url", stub.url])
    assert chat.Talk(Client(stub.url), Screen(out, False, True), options).run(False) == 0
    assert out.getvalue().count("半句") == 2
    assert "已停止" in out.getvalue()
    assert closed == [True, True]
    assert [m["content"] for m in asked[1]["messages"]] == ["二？"]


def test_colours_are_for_terminals(stub: Stub) -> None:
    out = io.StringIO()
    view = Screen(out, True, False).reply(False)
    view.show(Piece(reasoning="why"))
    view.show(Piece(content="so"))
    assert "\x1b[2mwhy\x1b[0m" in out.getvalue()
    assert "\x1b[0m\n\nso" in out.getvalue()


async def in_a_process(url: str, questions: str, *options: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.api.chat", "--url", url, *options,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT,
        env={**os.environ, "LC_ALL": "zh_CN.UTF-8"},
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(questions.encode()), 30)
    assert process.returncode == 0
    return out.decode()


async def test_a_session_of_our_server_is_taken_up_again(chat_format, pen, served: Factory, tmp_path) -> None:
    engine = FakeEngine(chat_format, pen.thought("想一想。", "请复查血压。"))
    async with served(engine, demo="x", database=f"{tmp_path}/memory.db") as running:
        first = await in_a_process(f"{running.url}/v1", "血压高？\n")
        assert "演示模型" in first
        assert "[思考] 想一想。\n\n请复查血压。\n" in first
        sessions = (await running.client.get("/v1/sessions")).json()["data"]
        assert [s["metadata"] for s in sessions] == [{"title": "血压高？"}]
        again = await in_a_process(running.url, "还有呢？\n", "--session", sessions[0]["id"])
        assert again.count("请复查血压。") == 2
        stored = (await running.client.get(f"/v1/sessions/{sessions[0]['id']}")).json()
        assert [t["messages"][0]["content"] for t in stored["turns"]] == ["血压高？", "还有呢？"]


def test_errors_name_the_next_step() -> None:
    with pytest.raises(ChatError, match="make serve"):
        Client("127.0.0.1:1").models()


async def test_ctrl_c_stops_the_answer_and_twice_at_the_prompt_ends_it(
    chat_format, pen, served: Factory, tmp_path
) -> None:
    engine = FakeEngine(chat_format, pen.write("<think>", "\n", *["想一想。"] * 4000), delay_s=0.005)
    async with served(engine, database=f"{tmp_path}/memory.db") as running:
        await asyncio.to_thread(_stop_and_leave, running.url)
        await until(lambda: any(r.startswith("chatcmpl") for r in engine.aborted))


def _stop_and_leave(url: str) -> None:
    with Terminal(["-m", "services.api.chat", "--url", url], LC_ALL="C.UTF-8") as terminal:
        terminal.wait_for("you> ")
        terminal.type("headache?\n")
        terminal.wait_for("想一想。", 3)
        assert "\x1b[2m" in terminal.raw
        terminal.type(CTRL_C)
        terminal.wait_for("stopped, this answer is incomplete")
        terminal.wait_for("you> ", 2)
        terminal.type(CTRL_C)
        terminal.wait_for("press Ctrl-C again to leave")
        assert terminal.end(press=CTRL_C) == 0
        assert f"--url {url} --session sess_" in terminal.shown
