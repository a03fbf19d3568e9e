"""The page on a real server over a scripted engine, as a browser sees it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page

from tests.browser import opened
from tests.fakes import FakeEngine
from tests.running import Factory, Running

THOUGHT = "首先确认病史。其次依据《中国高血压防治指南》评估，患者服用华法林。因此需要复查。"
ANSWER = "**建议**尽快复查血压。\n\n- 规律服药\n- 低盐饮食"


@dataclass(frozen=True)
class Visit:
    """A reader on the page."""

    page: Page
    running: Running

    async def ask(self, question: str) -> None:
        await self.page.get_by_label("请输入健康问题…").fill(question)
        await self.page.get_by_role("button", name="发送").click()

    async def answered(self, count: int = 1) -> None:
        """Until this many replies are over."""
        await self.page.wait_for_function(
            "n => document.querySelectorAll('.reply[aria-busy=false]').length === n", arg=count
        )


Visitor = Callable[..., AbstractAsyncContextManager[Visit]]


@pytest.fixture
def visit(browser: Browser, served: Factory, tmp_path: Path) -> Visitor:
    """`async with visit(engine, **settings) as reader`; `view` holds options of the browser's context."""

    @contextlib.asynccontextmanager
    async def go(engine: FakeEngine, view: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[Visit]:
        settings = {"database": f"{tmp_path}/memory.db"} | settings
        async with served(engine, **settings) as running, opened(browser, **(view or {})) as page:
            await page.goto(running.url)
            yield Visit(page, running)

    return go
