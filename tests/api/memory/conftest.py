"""The same tests on an SQLite file and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from services.api.memory.crypto import KeyRing
from services.api.memory.store import SessionStore
from tests.postgres import NoPostgres, Postgres, postgres


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    try:
        with postgres() as running:
            yield running
    except NoPostgres as error:
        pytest.skip(str(error))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/memory.db"
        return
    with request.getfixturevalue("server").fresh() as fresh:
        yield fresh


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Opener = Callable[..., Any]


@pytest.fixture
async def open_store(url: str) -> AsyncIterator[Opener]:
    """`await open_store()`: another process's view of the same database, closed at the end of the test."""
    async with AsyncExitStack() as stack:

        async def opener(keys: KeyRing | None = None, **options: Any) -> SessionStore:
            store = SessionStore(url, keys, **options)
            await store.open()
            stack.push_async_callback(store.close)
            return store

        yield opener


@pytest.fixture
async def store(open_store: Opener, clock: Clock) -> SessionStore:
    opened: SessionStore = await open_store(clock=clock)
    return opened
