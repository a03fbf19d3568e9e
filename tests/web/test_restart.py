"""The page outlives its server: what was said is there again, and the next question is answered."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from playwright.async_api import expect

from tests.browser import opened
from tests.fakes import FakeEngine
from tests.running import Running, service_of, until
from tests.web.conftest import ANSWER, THOUGHT, Visit


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def serving(engine: FakeEngine, id_to_token: Any, port: int, **settings: Any) -> AsyncIterator[None]:
    service, _ = service_of(engine, id_to_token, settings)
    config = uvicorn.Config(
        service.app, host="127.0.0.1", port=port, log_config=None, access_log=False, ws="none",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started and service.supervisor.is_ready)
    try:
        yield
    finally:
        server.should_exit = True
        await task


async def test_the_page_outlives_a_restart(browser, chat_format, pen, id_to_token, tmp_path) -> None:
    port, settings = free_port(), {"database": f"{tmp_path}/memory.db"}
    engine = FakeEngine(chat_format, pen.thought(THOUGHT, ANSWER))
    running: Any = Running(None, engine, None, None)  # type: ignore[arg-type]
    async with opened(browser) as page:
        reader = Visit(page, running)
        async with serving(engine, id_to_token, port, **settings):
            await page.goto(f"http://127.0.0.1:{port}")
            await reader.ask("第一个问题？")
            await reader.answered()
        await reader.ask("第二个问题？")
        await reader.answered(2)
        await expect(page.locator(".failure")).to_contain_text("无法连接服务器")
        await expect(page.locator("#connection")).to_contain_text("正在重连")
        async with serving(engine, id_to_token, port, **settings):
            await expect(page.locator("#connection")).to_contain_text("连接已恢复")
            await page.get_by_role("button", name="重新回答").last.click()
            await reader.answered(3)
            await expect(page.locator(".answer").last).to_contain_text("低盐饮食")
            await page.reload()
            await reader.answered(2)
            assert await page.locator(".question p").all_text_contents() == ["第一个问题？", "第二个问题？"]


async def test_a_stream_that_breaks_off_keeps_what_was_shown(browser, chat_format, pen, id_to_token, tmp_path) -> None:
    engine = FakeEngine(chat_format, pen.thought(THOUGHT, "先量血压。" * 9), delay_s=0.01, dies_after=40)
    async with (
        serving(engine, id_to_token, port := free_port(), database=f"{tmp_path}/m.db", restart_backoff_s=0.1),
        opened(browser) as page,
    ):
        reader = Visit(page, Running(None, engine, None, None))  # type: ignore[arg-type]
        await page.goto(f"http://127.0.0.1:{port}")
        await reader.ask("头晕？")
        await reader.answered()
        await expect(page.locator(".failure")).to_contain_text("the engine stopped")
        await expect(page.locator(".state")).to_contain_text("回答中断了")
        assert "首先" in (await page.locator(".thought-text").text_content() or "")
        engine.dies_after = None
        await expect(page.locator("#connection")).to_contain_text("连接已恢复")
        await page.get_by_role("button", name="重新回答").click()
        await reader.answered(2)
        await expect(page.locator(".answer").last).to_contain_text("先量血压")
