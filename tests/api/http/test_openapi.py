"""schemathesis reads the OpenAPI document and tries to make the service fail over real HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.schemas import APIOperation

from tests.fakes import FakeEngine, Pen, demo_chat_format
from tests.running import Factory

# Few and always the same, so that the fast tier stays within its time. For a hunt set it to hundreds, and derandomize to False.
EXAMPLES = 8


@pytest.fixture(scope="module")
def base_url(served: Factory) -> Iterator[str]:
    """The app in a thread with a loop of its own: schemathesis calls it from outside and waits."""
    ready, done, found = threading.Event(), asyncio.Event(), []

    async def serve() -> None:
        chat_format = demo_chat_format()
        engine = FakeEngine(chat_format, Pen(chat_format).thought("想", "答"), sizes=[40])
        async with served(engine) as running:
            found.extend([running.url, asyncio.get_running_loop()])
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    yield found[0]
    found[1].call_soon_threadsafe(done.set)
    thread.join(10)


def few_fields(body: dict[str, Any], keep: set[int]) -> dict[str, Any]:
    """A good question with a few of the generated fields: of all of them together, two nearly always contradict."""
    return {
        **{k: body[k] for n, k in enumerate(sorted(body)) if n in keep},
        "messages": [{"role": "user", "content": "你好"}],
    }


def statuses_of(operation: APIOperation, mode: GenerationMode) -> set[int]:
    """Calls one operation with generated requests; every refusal must have the one shape, none may be a 5xx."""
    seen = set()

    @settings(
        max_examples=EXAMPLES if operation.body else 3,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), keep=st.none() | st.sets(st.integers(0, 60), max_size=4))
    def call(case: schemathesis.Case, keep: set[int] | None) -> None:
        if keep is not None and isinstance(case.body, dict):
            case.body = few_fields(case.body, keep)
        response = case.call(timeout=60)
        seen.add(response.status_code)
        assert response.status_code < 500, f"{case.as_curl_command()}\n{response.text}"
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code", "request_id"}

    call()
    return seen


# schemathesis' own pytest plugin (4.32) reads an attribute that pytest 9 no longer has, so the operations are walked here.
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_within_or_beside_the_document_is_a_server_error(base_url: str, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{base_url}/openapi.json")
    statuses = {}
    for found in document.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.POSITIVE or operation.body:  # without a body nothing in it can be wrong
            statuses[operation.path] = statuses_of(operation, mode)
    assert (200 if mode is GenerationMode.POSITIVE else 400) in statuses["/v1/chat/completions"], statuses
