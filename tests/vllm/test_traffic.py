"""Many clients at once, clients that leave, and clients that send nonsense: nobody is hurt by another."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from services.trainer.demo.dialogues import Dialogue, read_corpus
from tests.server import CHAT, Server, body_of, data_frames, until

pytestmark = pytest.mark.vllm

Token = Callable[[str], int]

LONG = {"enable_thinking": False, "ignore_eos": True, "max_tokens": 3000}


@pytest.fixture(scope="module")
def dialogues() -> list[Dialogue]:
    chosen = {d.topic: d for d in read_corpus().dialogues if d.lang == "zh"}
    return list(chosen.values())[:12]


def likeness(text: str, other: str) -> int:
    """How many pairs of neighbouring characters two texts share."""
    pairs, others = (Counter(pairwise(t)) for t in (text, other))
    return (pairs & others).total()


async def test_twelve_questions_at_once_each_get_their_own_answer(server: Server, dialogues: list[Dialogue]) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=180) as client:
        bodies = [body_of({"question": d.question}) | {"stream": n % 2 == 0} for n, d in enumerate(dialogues)]
        responses = await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))
    answers = [answer_of(response) for response in responses]
    for n, (dialogue, answer) in enumerate(zip(dialogues, answers, strict=True)):
        best = max(range(len(dialogues)), key=lambda i: likeness(answer, dialogues[i].answer))
        assert best == n, f"{dialogue.question} was answered: {answer}"


def answer_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    if response.headers["content-type"] == "application/json":
        return str(response.json()["choices"][0]["message"]["content"])
    frames = list(data_frames(iter(response.text.splitlines())))
    assert frames.pop() == "[DONE]"
    assert not any("error" in frame for frame in frames), frames[-1]
    return "".join(c["delta"].get("content") or "" for f in frames if isinstance(f, dict) for c in f["choices"])


async def test_sampling_of_one_request_does_not_touch_another(server: Server, token: Token) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=180) as client:
        bodies = [
            body_of({"enable_thinking": False, "logit_bias": {str(token(letter)): 100}, "max_tokens": 30 + n})
            for n, letter in enumerate("ABCDEFGHIJKL")
        ]
        responses = await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))
    assert [answer_of(r) for r in responses] == [letter * (30 + n) for n, letter in enumerate("ABCDEFGHIJKL")]


NONSENSE: list[bytes] = [
    b"{",
    b"[]",
    b"{}",
    b'{"messages":[{"role":"user","content":"a"}],"temperature":"hot"}',
    b'{"messages":[{"role":"user","content":"a"}],"stop_token_ids":[-1]}',
    b'{"messages":[{"role":"user","content":"a"}],"structured_outputs":{"regex":"("}}',
    b'{"messages":[{"role":"user","content":"a"}],"logit_bias":{"999999":1}}',
    b'{"messages":[{"role":"user","content":"a"}],"n":999}',
    b'{"messages":[{"role":"user","content":"' + b"a " * 9000 + b'"}]}',
    b'{"messages":' + b"[" * 20000 + b"]" * 20000 + b"}",
    b'{"messages":[{"role":"user","content":"a"}],"model":"gpt-4"}',
]


async def test_nonsense_in_the_middle_of_others_hurts_nobody(server: Server, token: Token) -> None:
    body = body_of({"enable_thinking": False, "logit_bias": {str(token("Q")): 100}, "max_tokens": 400, "stream": True})
    async with httpx.AsyncClient(base_url=server.url, timeout=180) as client:
        good = [asyncio.create_task(client.post(CHAT, json=body)) for _ in range(4)]
        await asyncio.to_thread(until, lambda: server.metric("vllm:num_requests_running") > 0)
        bad = [await client.post(CHAT, content=b, headers={"content-type": "application/json"}) for b in NONSENSE]
        assert not all(task.done() for task in good), "the others were over before the nonsense came"
        responses = await asyncio.gather(*good)
    assert [r.status_code for r in bad] == [400] * 10 + [404], [r.text for r in bad]
    assert all(r.json()["error"]["code"] for r in bad)
    assert [answer_of(r) for r in responses] == ["Q" * 400] * 4
    assert server.status("/readyz") == 200


@contextmanager
def connection(server: Server, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A request on a socket of its own, which is closed without reading to the end."""
    address = urlsplit(server.url)
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: medthink\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=60) as connected:
        connected.sendall(head.encode() + data)
        yield connected


@pytest.mark.parametrize("streamed", [True, False], ids=["streaming", "waiting"])
@pytest.mark.parametrize("choices", [1, 3])
def test_a_client_that_leaves_frees_the_engine(server: Server, streamed: bool, choices: int) -> None:
    left = server.metric("medthink_client_disconnects_total")
    with connection(server, body_of(LONG | {"stream": streamed, "n": choices})) as connected:
        until(lambda: server.metric("vllm:num_requests_running") == choices)
        if streamed:
            assert connected.recv(4096).startswith(b"HTTP/1.1 200")
    until(lambda: server.metric("vllm:num_requests_running") == 0)
    until(lambda: server.metric("medthink_client_disconnects_total") == left + 1)
    until(lambda: server.metric("medthink_active_choices") == 0)


def test_a_client_that_leaves_in_its_thought_frees_the_engine(server: Server, token: Token) -> None:
    forced = {"logit_bias": {str(token("Q")): 50}, "max_tokens": 3000, "stream": True, "ignore_eos": True}
    with connection(server, body_of(forced)) as connected:
        until(lambda: server.metric("vllm:num_requests_running") == 1)
        connected.recv(1)
    until(lambda: server.metric("vllm:num_requests_running") == 0)


def test_a_server_that_is_asked_nothing_does_nothing(server: Server) -> None:
    """A log line that came back to the log's own pipe once kept a core busy for ever."""
    until(lambda: server.metric("vllm:num_requests_running") == 0)
    processes = [psutil.Process(server.pid), *server.children()]

    def busy_s() -> float:
        return sum(t.user + t.system for t in (p.cpu_times() for p in processes))

    before = busy_s()
    time.sleep(2)
    assert busy_s() - before < 1.0


def test_every_line_of_the_log_is_a_json_object(server: Server, post: Callable[..., httpx.Response]) -> None:
    server_says = post(question="头痛怎么办？", max_tokens=2)
    mine = server_says.headers["x-request-id"]
    until(lambda: sum(r.get("request_id") == mine for r in server.records()) >= 2)
    records = server.records()
    assert records[0]["message"].startswith("[1/4]")
    for record in records:
        assert {"ts", "level", "request_id", "message"} <= record.keys(), record
    assert any("POST /v1/chat/completions 200" in r["message"] for r in records if r["request_id"] == mine)
