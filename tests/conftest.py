"""Fixtures of the fast tier: the demo tokenizer, a pen for replies, and the app over a scripted engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import settings as hypothesis_settings
from tokenizers import Tokenizer

from services.api.thinking.token_text import TokenTexts
from services.contract.chat_format import ChatFormat
from tests.browser import browser, chromium, page, sync_page  # noqa: F401 - fixtures
from tests.fakes import DEMO, FakeEngine, Pen, demo_chat_format
from tests.running import Factory, Running, service_of, until

# Machines that run this are slow and shared: an example that is slow once is no fault.
hypothesis_settings.register_profile("medthink", deadline=None, print_blob=True)
hypothesis_settings.load_profile("medthink")


TIERS = ("kills", "browser", "torch", "clients", "vllm")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, then those with other processes, torch, an engine: what is broken shows in seconds."""

    def tier(item: pytest.Item) -> int:
        return max((n + 1 for n, marker in enumerate(TIERS) if item.get_closest_marker(marker)), default=0)

    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
    items.sort(key=tier)


@pytest.fixture(scope="session")
def chat_format() -> ChatFormat:
    return demo_chat_format()


@pytest.fixture(scope="session")
def pen(chat_format: ChatFormat) -> Pen:
    return Pen(chat_format)


@pytest.fixture(scope="session")
def id_to_token() -> Callable[[int], str | None]:
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    return tokenizer.id_to_token


@pytest.fixture(scope="session")
def texts(chat_format: ChatFormat, id_to_token: Callable[[int], str | None]) -> TokenTexts:
    return TokenTexts(id_to_token, chat_format.control_ids)


@pytest.fixture(scope="session")
def in_process(id_to_token: Any) -> Factory:
    """`async with in_process(engine, **settings) as running`: the app without a socket; replies come in one piece."""

    @contextlib.asynccontextmanager
    async def run(engine: FakeEngine, wait: bool = True, **options: Any) -> AsyncIterator[Running]:
        service, registry = service_of(engine, id_to_token, options)
        async with service.life.run(service.app):
            if wait:
                await until(lambda: service.supervisor.is_ready)
            transport = httpx.ASGITransport(app=service.app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://medthink") as client:
                yield Running(service, engine, client, registry)

    return run


@pytest.fixture(scope="session")
def served(id_to_token: Any) -> Factory:
    """`async with served(engine, **settings) as running`: real uvicorn on a free port, for timing and disconnects."""

    @contextlib.asynccontextmanager
    async def run(engine: FakeEngine, wait: bool = True, **options: Any) -> AsyncIterator[Running]:
        service, registry = service_of(engine, id_to_token, options)
        config = uvicorn.Config(
            service.app, host="127.0.0.1", port=0, log_config=None, access_log=False, ws="none", http="httptools",
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        task = asyncio.create_task(server.serve())
        await until(lambda: server.started and (service.supervisor.is_ready or not wait))
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        try:
            async with httpx.AsyncClient(base_url=url, timeout=10) as client:
                yield Running(service, engine, client, registry, url)
        finally:
            server.should_exit = True
            await task

    return run
