"""The browser that other tests stand on."""

from __future__ import annotations

import pytest

from tests.browser import opened


async def test_a_page_renders_and_runs_scripts(page) -> None:
    await page.set_content("<h1>你好</h1><script>document.title = String(6 * 7)</script>")
    assert await page.title() == "42"
    assert await page.inner_text("h1") == "你好"


def test_a_page_in_a_test_that_is_not_async(sync_page) -> None:
    sync_page.set_content("<h1>hello</h1>")
    assert sync_page.inner_text("h1") == "hello"


async def test_a_browser_after_one_that_was_not_async(page) -> None:
    assert await page.evaluate("navigator.language") == "zh-CN"


async def test_a_page_that_throws_is_noticed(browser) -> None:
    with pytest.raises(AssertionError, match="no such luck"):
        async with opened(browser) as page, page.expect_event("pageerror"):
            await page.set_content("<script>throw new Error('no such luck')</script>")
