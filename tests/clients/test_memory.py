"""The article's conversation with the server's memory: it survives `kill -9` and a restart, and is erased without a trace."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from langchain_openai import ChatOpenAI

from tests.server import Server

pytestmark = pytest.mark.clients

QUESTIONS = ("左心室EF值35%是什么意思？", "高血压患者能吃西柚吗？", "谢谢，再见。")
SECRET = "蓝鲸四七一"


def begun(database: Path, log: list[Server]) -> Server:
    server = Server(DATABASE=str(database))
    log.append(server)
    return server.wait_until_ready()


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    started: list[Server] = []
    yield started
    for server in started:
        server.stop()


def say(server: Server, text: str, session: str = "visit-1") -> str:
    """Only the new message is sent; LangChain as the article sets it up, with a session."""
    chat = ChatOpenAI(
        model="Qwen3-1.7B", temperature=0, base_url=f"{server.url}/v1", api_key="EMPTY", streaming=True, max_tokens=600,
        extra_body={"enable_thinking": True, "return_reasoning": True, "session_id": session},
    )  # fmt: skip
    return str(chat.invoke(text).content)


def turns(server: Server, session: str = "visit-1") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{server.url}/v1/sessions/{session}").raise_for_status().json()["turns"]
    return found


def test_a_conversation_survives_kill_and_restart_and_is_erased(tmp_path: Path, servers: list[Server]) -> None:
    database = tmp_path / "memory.db"
    first = begun(database, servers)
    told = [say(first, QUESTIONS[0]), say(first, QUESTIONS[1])]
    say(first, f"我的暗号是{SECRET}，请记住。", session="secret")
    children = first.children()
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    for child in children:  # vLLM's engine process outlives a server that was killed
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()

    second = begun(database, servers)
    told.append(say(second, QUESTIONS[2]))
    kept = turns(second)
    assert [turn["messages"] for turn in kept] == [[{"role": "user", "content": q}] for q in QUESTIONS]
    for turn, content in zip(kept, told, strict=True):
        assert turn["status"] == "done"
        assert content.endswith(f"<|AnswerBegin|>{turn['answer']}")
        assert turn["reasoning"] in content
    assert kept[2]["usage"]["prompt_tokens"] > kept[0]["usage"]["prompt_tokens"]

    files = [database, Path(f"{database}-wal")]
    assert any(SECRET.encode() in file.read_bytes() for file in files if file.exists())
    gone = httpx.delete(f"{second.url}/v1/sessions/secret").raise_for_status().json()
    assert gone["erased"]
    for file in [*tmp_path.iterdir(), first.log_path, second.log_path]:
        assert SECRET.encode() not in file.read_bytes(), file.name
