"""A fake API, scenarios, and a finished run of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.trainer.evaluate.answers import Run
from services.trainer.evaluate.api_client import ApiClient
from services.trainer.evaluate.ask import Plan, ask_all
from services.trainer.evaluate.scenario import Scenario
from tests.trainer.evaluate.fake_api import ADAPTER, FakeApi, fake_api


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with fake_api() as running:
        yield running


@pytest.fixture
def client(api: FakeApi) -> ApiClient:
    return ApiClient(api.url, "key", timeout_s=20, attempts=3, first_wait_s=0.01)


def scenario(number: int, **options: Any) -> Scenario:
    plain = {
        "id": f"t{number:02d}",
        "department": "内科",
        "title": f"题{number}",
        "turns": [{"role": "user", "content": f"问题{number}?"}],
        "expected": [{"point": "看症状", "phrases": ["症状"]}, {"point": "就诊", "phrases": ["就诊", "就医"]}],
        "forbidden": [{"point": "停药", "phrases": ["停药"]}],
        "sources": [{"name": "NICE", "url": "https://www.nice.org.uk/guidance/ng136"}],
    }
    return Scenario.model_validate(plain | options)


@pytest.fixture
def plan() -> Plan:
    urgent = {
        "red_flags": [{"point": "胸痛", "phrases": ["胸痛"]}],
        "urgent": {"point": "急诊", "phrases": ["立即就诊"]},
    }
    scenarios = (scenario(1), scenario(2, **urgent), scenario(3))
    return Plan(scenarios, {"base": "Qwen3-1.7B", "adapter": ADAPTER}, (0, 1), {"temperature": 0.6}, "严谨")


@pytest.fixture
def make_run(client: ApiClient, plan: Plan, tmp_path: Path) -> Callable[[], Run]:
    return lambda: ask_all(client, plan, tmp_path / "run")
