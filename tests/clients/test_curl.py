"""curl, as the start-up log and the README show it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess

import pytest

from tests.server import Server, data_frames

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed on this machine"),
]

BODY = {"messages": [{"role": "user", "content": "左心室EF值35%是什么意思？"}], "temperature": 0}


def curl(*arguments: str) -> str:
    done = subprocess.run(["curl", "-sS", "--max-time", "180", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def post(url: str, **fields: object) -> list[str]:
    body = json.dumps(BODY | fields, ensure_ascii=False)
    return [f"{url}/chat/completions", "-H", "Content-Type: application/json", "-d", body]


def test_a_whole_reply(url: str) -> None:
    message = json.loads(curl(*post(url)))["choices"][0]["message"]
    assert "射血分数" in message["content"]
    assert message["reasoning_content"]


def test_a_stream(url: str) -> None:
    head, _, events = curl("-N", "-i", *post(url, stream=True)).partition("\n\n")
    assert "200 OK" in head
    assert "text/event-stream" in head
    frames = list(data_frames(iter(events.splitlines())))
    assert frames[-1] == "[DONE]"
    text = "".join(c["delta"].get("content") or "" for f in frames if isinstance(f, dict) for c in f["choices"])
    assert "射血分数" in text


def test_the_line_that_the_server_shows_at_its_start_works_when_pasted(server: Server) -> None:
    line = next(r["message"] for r in server.records() if r["message"].startswith("try: "))
    command = shlex.split(line.removeprefix("try: "))
    assert command[0] == "curl"
    frames = list(data_frames(iter(curl(*command[1:]).splitlines())))
    assert frames[-1] == "[DONE]"
    assert len(frames) > 4


def test_an_error_says_what_to_do(url: str) -> None:
    error = json.loads(curl(f"{url}/chat/completions", "-d", "{}"))["error"]
    assert error["code"] == "unsupported_media_type"
    assert "application/json" in error["message"]
