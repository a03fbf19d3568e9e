"""A real browser for tests: the system's Chromium, installed where we may, driven by Playwright, which downloads nothing.

Fixtures: `browser` and `page` for async tests, `sync_page` for others. Each test has a browser process of its own, which costs
half a second and leaves no cookie, cache or event loop behind. A page that throws fails its test.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, Page
    from playwright.sync_api import Page as SyncPage

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DOWNLOADED = ".cache/ms-playwright/chromium-*/chrome-linux*/chrome"  # by somebody's `playwright install`
# With it a font that has Chinese: layout is tested with the letters that readers see.
PACKAGES = ("chromium", "fonts-wqy-microhei")
INSTALL_LIMIT_S = 300
STEP_LIMIT_MS = 15_000  # these machines are slow and shared


class NoBrowser(Exception):
    """Why there is none here; the message is a reason to skip."""


@cache
def find_chromium() -> Path:
    """Chromium of this machine, installed first where we may; raises `NoBrowser`."""
    found = _installed()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        _install()
        found = _installed()
    if found is None:
        raise NoBrowser(
            "Chromium is not here and could not be installed: run `apt-get install chromium` as root, then these tests run"
        )
    return found


def _installed() -> Path | None:
    named = [path for name in NAMES if (path := shutil.which(name))]
    named += sorted(glob.glob(str(Path.home() / DOWNLOADED)), reverse=True)
    return next((Path(path) for path in named if _runs(path)), None)


def _runs(path: str) -> bool:
    """Whether it is a browser: some systems have a script of this name that only says where to get one."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    return False


def _install() -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, env=environment, timeout=INSTALL_LIMIT_S)


def _launch_options(chromium: Path) -> dict[str, Any]:
    # Root, as in containers, has no sandbox; /dev/shm is small there.
    arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    return {"executable_path": str(chromium), "args": arguments}


@pytest.fixture(scope="session")
def chromium() -> Path:
    """Path of the browser; without one the test is skipped."""
    try:
        return find_chromium()
    except NoBrowser as error:
        pytest.skip(str(error))


@pytest.fixture
async def browser(chromium: Path) -> AsyncIterator[Browser]:
    """A browser in the test's own event loop."""
    from playwright.async_api import async_playwright

    async with async_playwright() as driver:
        running = await driver.chromium.launch(**_launch_options(chromium))
        try:
            yield running
        finally:
            await running.close()


@contextlib.asynccontextmanager
async def opened(browser: Browser, **options: Any) -> AsyncIterator[Page]:
    """A page in a context of its own; `options` as of `browser.new_context`: locale, viewport, color_scheme, ...

    Whatever scripts of the page throw fails the test at the end.
    """
    context: BrowserContext = await browser.new_context(**({"locale": "zh-CN"} | options))
    context.set_default_timeout(STEP_LIMIT_MS)
    page = await context.new_page()
    thrown: list[str] = []
    page.on("pageerror", lambda error: thrown.append(str(error)))
    try:
        yield page
    finally:
        await context.close()
    _nothing(thrown)


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    async with opened(browser) as page:
        yield page


@pytest.fixture
def sync_page(chromium: Path) -> Iterator[SyncPage]:
    """The same for tests that are not async."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(**_launch_options(chromium))
        context = running.new_context(locale="zh-CN")
        context.set_default_timeout(STEP_LIMIT_MS)
        thrown: list[str] = []
        page = context.new_page()
        page.on("pageerror", lambda error: thrown.append(str(error)))
        try:
            yield page
        finally:
            context.close()
            running.close()
        _nothing(thrown)


def _nothing(thrown: list[str]) -> None:
    if thrown:
        raise AssertionError(f"the page threw: {'; '.join(thrown)}")
