"""docs/ehr.md's worked example, run as it is written; and the same against a real engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.api.ehr.clients import read_clients
from services.api.ehr.hooks import HOOKS, NECESSARY, PREFETCH
from tests.api.ehr.conftest import Door
from tests.api.ehr.judging import check_cards
from tests.fakes import ROOT
from tests.server import Server

PAGE = (ROOT / "docs" / "ehr.md").read_text(encoding="utf-8")


def example(name: str) -> Any:
    return json.loads(re.findall(rf"<!-- example: {name} -->\n```json\n(.*?)```", PAGE, re.DOTALL)[0])


def check_example(response: httpx.Response) -> str:
    """The card that the page shows, and what it says of the other one; the first card's id."""
    cards = check_cards(response)
    shown = example("card")
    assert {key: cards[0][key] for key in shown} == shown
    assert all(key in cards[1]["detail"] for key in ("observations", "medications", "encounters"))
    return str(cards[0]["uuid"])


async def test_the_example_runs_as_written(door: Door, tmp_path: Path) -> None:
    addresses = [re.sub(r"^http://[^/]+", "", url) for url in re.findall(r"http://127\.0\.0\.1:8000\S*", PAGE)]
    kept = tmp_path / "feedback.jsonl"
    async with door({"ehr_feedback": str(kept)}) as running:
        assert (await running.client.get(addresses[0])).status_code == 200
        card = check_example(await running.client.post(addresses[1], json=example("request")))
        told = json.loads(json.dumps(example("feedback")).replace("CARD-UUID", card))
        assert (await running.client.post(addresses[2], json=told)).status_code == 200
        assert card in kept.read_text()
        chat = await running.client.post("/v1/chat/completions", json=example("chat"))
        assert chat.status_code == 200
    assert addresses[-1] == "/v1/chat/completions"


def test_the_file_of_clients_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "clients.json"
    path.write_text(json.dumps(example("clients")))
    assert len(read_clients(path)) == 2


def test_services_and_prefetch_keys_are_named() -> None:
    for name in (*HOOKS, *(hook for hooks in HOOKS.values() for hook in hooks), *PREFETCH):
        assert f"`{name}`" in PAGE
    assert re.findall(r"^\| `(\w+)` \| \w+ \| 412 \|$", PAGE, re.MULTILINE) == list(NECESSARY)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A real one with the demo model."""
    found = Server(EHR_AUTH="off", EHR_FEEDBACK="", EHR_DEADLINE_S="20")
    try:
        yield found.wait_until_ready()
    finally:
        found.stop()


@pytest.mark.vllm
def test_the_example_runs_on_the_real_engine(server: Server) -> None:
    url = f"{server.url}/cds-services/medthink-order-review"
    response = httpx.post(url, json=example("request"), timeout=60)
    check_example(response)
    assert "演示模型" in response.json()["cards"][1]["detail"]
