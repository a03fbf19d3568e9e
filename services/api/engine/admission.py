"""How many choices may be generated or queued at once. A full house says so at once instead of letting everybody wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from services.api.errors import InvalidRequest, Overloaded, ShuttingDown


class Admission:
    """Counts choices in flight. Closed while draining."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._active = 0
        self._open = True
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        return self._active

    @property
    def is_open(self) -> bool:
        return self._open

    def close(self) -> None:
        """Lets nobody in any more; who is in may finish."""
        self._open = False

    @contextmanager
    def admit(self, choices: int) -> Iterator[None]:
        """Holds places for one request.

        Raises `ShuttingDown`, `Overloaded` when the house is full now, `InvalidRequest` when it is too small ever.
        """
        if not self._open:
            raise ShuttingDown("the server is shutting down: retry on another replica, or in a moment")
        if choices > self._limit:
            raise InvalidRequest(f"n may be at most {self._limit} on this server", param="n")
        if self._active + choices > self._limit:
            raise Overloaded(
                f"{self._active} replies are being written, and {self._limit} is the limit: retry in a second"
            )
        self._active += choices
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= choices
            if self._active == 0:
                self._idle.set()

    async def wait_until_idle(self, limit_s: float) -> bool:
        """True once nobody is in, False when the limit has passed first."""
        try:
            await asyncio.wait_for(self._idle.wait(), limit_s)
        except TimeoutError:
            return False
        return True
