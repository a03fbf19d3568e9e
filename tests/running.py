"""A service under test: the real app over a scripted engine, and how to wait for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import httpx
from prometheus_client import CollectorRegistry

from services.api.app import Model, Service, build
from services.api.settings import Settings
from tests.fakes import FakeEngine


@dataclass(frozen=True)
class Running:
    """A service whose engine has started, and a client of it."""

    service: Service
    engine: FakeEngine
    client: httpx.AsyncClient
    registry: CollectorRegistry
    url: str = "http://medthink"

    async def chat(self, **body: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json=body)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


Factory = Callable[..., AbstractAsyncContextManager[Running]]


def service_of(engine: FakeEngine, id_to_token: Any, options: dict[str, Any]) -> tuple[Service, CollectorRegistry]:
    """`options` are settings, and `demo`, `sampling_defaults` and `config` of the model. No sessions without `database`."""
    demo, defaults = options.pop("demo", None), options.pop("sampling_defaults", {})
    options.setdefault("database", "")  # a test that needs a memory names one
    registry = CollectorRegistry()
    config = options.pop("config", None) or {}
    model = Model(engine, engine.chat_format, id_to_token, defaults, demo, config)
    return build(Settings(**options), model, registry=registry), registry


async def until(condition: Callable[[], bool], limit_s: float = 5.0) -> None:
    """Waits for something to become true, and fails the test when it does not."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - conditions are of many kinds, few have an event
            await asyncio.sleep(0.002)


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of a response, after checking the one shape that all errors have."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["code"] == code, error
    assert error["message"]
    assert "Traceback" not in error["message"]
    assert error["request_id"] == response.headers["x-request-id"]
    if status == 503:
        assert int(response.headers["retry-after"]) > 0
    return error


def frames_of(text: str) -> list[Any]:
    """The `data:` frames of a stream as JSON, `[DONE]` checked and left out; comments are skipped."""
    frames = [part for part in text.split("\n\n") if part and not part.startswith(":")]
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames), text
    assert frames[-1] == "data: [DONE]"
    assert text.count("[DONE]") == 1
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-1]]


def added_up(frames: list[Any]) -> list[dict[str, Any]]:
    """What a client has after a stream: one message a choice, its finish and its logprobs."""
    choices: dict[int, dict[str, Any]] = {}
    for frame in frames:
        for choice in frame["choices"]:
            message = choices.setdefault(choice["index"], {"content": "", "reasoning_content": "", "reasoning": ""})
            delta = choice["delta"]
            for name in ("content", "reasoning_content", "reasoning"):
                message[name] += delta.get(name) or ""
            for call in delta.get("tool_calls", ()):
                calls = message.setdefault("tool_calls", [])
                if "id" in call:
                    calls.append({"id": call["id"], "type": call["type"], "function": dict(call["function"])})
                else:
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
            if choice["logprobs"]:
                message.setdefault("logprobs", []).extend(choice["logprobs"]["content"])
            if choice["finish_reason"]:
                message["finish_reason"] = choice["finish_reason"]
                message["stop_reason"] = choice["stop_reason"]
    return [choices[index] for index in sorted(choices)]
