"""Turns of one session run one at a time, in order of arrival; different sessions know nothing of each other.

This is the order within one process. Between processes the database keeps it: `SessionStore.load` waits for another
replica's turn, and of two `begin_turn` with the same history one is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass, field

from services.api.memory.errors import SessionBusy


@dataclass(slots=True)
class _Line:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    present: int = 0  # who holds the lock and all who wait for it


class TurnOrder:
    """A queue for each session that somebody is at, and none for the others."""

    def __init__(self, wait_s: float, most_waiting: int = 32) -> None:
        """`wait_s`: how long a turn waits for those before it. `most_waiting`: beyond it a turn is refused at once."""
        self._wait_s = wait_s
        self._most_waiting = most_waiting
        self._lines: dict[Hashable, _Line] = {}

    def __len__(self) -> int:
        """Sessions that somebody is at."""
        return len(self._lines)

    @contextlib.asynccontextmanager
    async def hold(self, key: Hashable) -> AsyncIterator[float]:
        """The session is ours inside; yields what is left of the wait, seconds, for the wait between replicas.

        `key` is (tenant, session id). Raises `SessionBusy` after `wait_s`. Who is cancelled while it waits leaves the
        others in their order.
        """
        line = self._lines.setdefault(key, _Line())
        if line.present > self._most_waiting:
            raise SessionBusy(
                f"{line.present} requests of this session wait already: send one turn at a time and wait for its answer"
            )
        line.present += 1
        begun = time.monotonic()
        try:
            await self._acquire(line.lock)
            try:
                yield max(0.0, self._wait_s - (time.monotonic() - begun))
            finally:
                line.lock.release()
        finally:
            line.present -= 1
            if not line.present:
                del self._lines[key]

    async def _acquire(self, lock: asyncio.Lock) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                await lock.acquire()
        except TimeoutError:
            raise SessionBusy(
                f"another turn of this session has been running for {self._wait_s:g} s: wait for its answer, then send "
                "this one again"
            ) from None
