"""Retries: a call that comes again joins the running one or gets its answer, so there is one generation and one set of cards."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

KEPT_S: Final = 600.0
MOST_CALLS: Final = 5000

Answer = TypeVar("Answer")


@dataclass(eq=False)
class _Running(Generic[Answer]):
    task: asyncio.Task[Answer]
    begun: float
    waiting: int = 0


class Calls(Generic[Answer]):
    """Calls of the last ten minutes by their key. Errors are not kept: a retry tries again."""

    def __init__(self) -> None:
        self._calls: OrderedDict[str, _Running[Answer]] = OrderedDict()

    async def once(self, key: str, work: Callable[[], Awaitable[Answer]]) -> tuple[Answer, bool]:
        """The answer, and whether an earlier call has made it. The last client that leaves aborts the work."""
        self._forget_old()
        call = self._calls.get(key)
        joined = call is not None
        if call is None:
            call = self._calls[key] = _Running(asyncio.ensure_future(_run(work)), time.monotonic())
        call.waiting += 1
        try:
            return await asyncio.shield(call.task), joined
        except BaseException:
            if call.task.done() or call.waiting == 1:
                self._calls.pop(key, None)
            raise
        finally:
            call.waiting -= 1
            if not call.waiting and not call.task.done():
                call.task.cancel()
                await asyncio.gather(call.task, return_exceptions=True)

    def _forget_old(self) -> None:
        limit = time.monotonic() - KEPT_S
        while self._calls:
            key, oldest = next(iter(self._calls.items()))
            if not oldest.task.done() or (oldest.begun > limit and len(self._calls) <= MOST_CALLS):
                return
            del self._calls[key]


async def _run(work: Callable[[], Awaitable[Answer]]) -> Answer:
    return await work()
