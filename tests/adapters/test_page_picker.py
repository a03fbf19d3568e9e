"""The page's choice of model, in a real browser: published adapters are offered, asked, and remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.adapters.volumes import Volume
from tests.browser import opened
from tests.fakes import FakeEngine, Pen
from tests.running import Factory

pytestmark = pytest.mark.browser


async def test_an_adapter_is_chosen_asked_and_chosen_again_after_a_reload(
    browser: Browser, served: Factory, volume: Volume, tmp_path: Path, speaking: Callable[..., FakeEngine], pen: Pen
) -> None:
    engine = speaking()
    engine.reply = lambda request: pen.answer(request.adapter.name if request.adapter else "base")
    version = volume.publish("cardio")
    options: dict[str, Any] = {"adapters": str(volume.root), "adapter_cache": str(tmp_path / "copies")}
    known = {"adapter_poll_s": 0.01, "max_adapter_rank": 8, "database": "", "config": dict(volume.base)}
    async with served(engine, **options, **known) as running, opened(browser) as page:
        for _ in range(100):
            if "cardio" in (await running.client.get("/v1/models")).text:
                break
            await page.wait_for_timeout(50)
        await page.goto(running.url)
        await page.get_by_label("请输入健康问题…").fill("头痛？")
        await page.get_by_role("button", name="发送").click()
        await expect(page.locator(".answer").last).to_contain_text("base")
        await page.locator("#model").select_option("cardio")
        await page.get_by_label("请输入健康问题…").fill("头痛？")
        await page.get_by_role("button", name="发送").click()
        await expect(page.locator(".answer").last).to_contain_text(f"cardio@{version}")
        await page.reload()
        await expect(page.locator("#model")).to_have_value("cardio")
        assert version[:8] in await page.locator("#model option:checked").inner_text()
