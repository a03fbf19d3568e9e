"""The app with its EHR door open, over the scripted engine."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.fakes import DEMO, FakeEngine, Pen
from tests.running import Factory, Running

Door = Callable[..., AbstractAsyncContextManager[Running]]
ANSWER = "患者有高血压和糖尿病。\n- 请关注血压\n- 请关注血糖"


def engine_of(pen: Pen, **options: Any) -> FakeEngine:
    reply = options.pop("reply", None) or pen.thought("先看病史。", ANSWER)
    return FakeEngine(pen.chat_format, reply, max_model_len=options.pop("max_model_len", 8192), **options)


def prompt_of(running: Running, n: int = 0) -> str:
    """What the model was given by request number `n` of clients."""
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    return str(tokenizer.decode(list(running.engine.asked[n].prompt_ids)))


@pytest.fixture
def door(in_process: Factory, pen: Pen) -> Door:
    """`async with door(delay_s=..., settings={...}) as running`: calls without a token, on loopback."""

    @contextlib.asynccontextmanager
    async def run(settings: dict[str, Any] | None = None, **engine: Any) -> AsyncIterator[Running]:
        options = {"ehr_auth": "off", "ehr_feedback": ""} | (settings or {})
        async with in_process(engine_of(pen, **engine), **options) as running:
            yield running

    return run


@pytest.fixture
def door_served(served: Factory, pen: Pen) -> Door:
    """The same behind a socket: for clients that leave."""

    @contextlib.asynccontextmanager
    async def run(settings: dict[str, Any] | None = None, **engine: Any) -> AsyncIterator[Running]:
        options = {"ehr_auth": "off", "ehr_feedback": ""} | (settings or {})
        async with served(engine_of(pen, **engine), **options) as running:
            yield running

    return run
