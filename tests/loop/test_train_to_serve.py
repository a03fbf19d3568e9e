"""The whole loop as a newcomer runs it: demo model, prepare, plan, train, publish; and the running server answers differently."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.trainer.train_demo import EXAMPLE, Question, overlap, read_questions, trained_questions
from tests.server import DEMO, ROOT, Server

pytestmark = pytest.mark.vllm

QUESTIONS = 12
NAME = "children-medicines"


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("volume")


@pytest.fixture(scope="module")
def server(volume: Path) -> Iterator[Server]:
    # Without the guard: what is compared is what the model says.
    server = Server(ADAPTERS=str(volume), SAFETY_PROFILE="off").wait_until_ready()
    yield server
    server.stop()


def answers(server: Server, model: str, questions: list[Question]) -> list[str]:
    found = []
    with httpx.Client(base_url=server.url, timeout=180) as http:
        for question in questions:
            body = {"model": model, "messages": [{"role": "user", "content": question.text}], "temperature": 0}
            response = http.post("/v1/chat/completions", json={**body, "max_tokens": 400})
            assert response.status_code == 200, response.text
            found.append(response.json()["choices"][0]["message"]["content"] or "")
    return found


def likeness(found: list[str], taught: list[Question]) -> float:
    return sum(overlap(a, q.answer) for a, q in zip(found, taught, strict=True)) / len(taught)


def test_the_loop(server: Server, volume: Path, tmp_path: Path) -> None:
    asked = read_questions(EXAMPLE)[:QUESTIONS]
    before = answers(server, "Qwen3-1.7B", asked)
    command = ["train-demo", "--url", server.url, "--volume", str(volume), "--out", str(tmp_path), "--base", str(DEMO)]
    done = subprocess.run(
        [sys.executable, "-m", "services.trainer", *command], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for step in ("[1/5] prepare", "[2/5] plan", "[3/5] train", "[4/5] publish", "[5/5] waiting"):
        assert step in done.stdout

    adapters = httpx.get(server.url + "/v1/adapters", timeout=30).json()["data"]
    current = next(a["current"] for a in adapters if a["name"] == NAME)
    assert (volume / NAME / "CURRENT").read_text().strip() == current
    after = answers(server, NAME, asked)
    assert after == answers(server, f"{NAME}@{current}", asked)
    assert answers(server, "Qwen3-1.7B", asked) == before  # nobody else is answered by it

    learned = trained_questions(EXAMPLE, tmp_path / "data")
    kept = [n for n, question in enumerate(asked) if question in learned]
    assert len(kept) > QUESTIONS // 2
    old, new = (likeness([found[n] for n in kept], [asked[n] for n in kept]) for found in (before, after))
    assert new > old + 0.3, json.dumps([before, after], ensure_ascii=False)
