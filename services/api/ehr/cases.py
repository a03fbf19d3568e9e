"""Runs of the model for a chart: begun by a call, joined by others, going on after the call's deadline for who follows its link.

A run that nobody waits for and that no link leads to is aborted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from services.api.errors import ApiError, Overloaded
from services.api.logs import fields
from services.api.messages import Language

log = logging.getLogger(__name__)

MOST_CASES: Final = 2000


@dataclass(eq=False)
class Case:
    """One run: its frames so far, and whether it is over. `published`: a link to it has been given out."""

    id: str
    key: str
    language: Language
    frames: list[dict[str, Any]] = field(default_factory=list)
    answer: str = ""
    verdict: str = ""
    model: str = ""
    demo: bool = False  # a model that is not medicine
    error: ApiError | None = None
    done: bool = False
    published: bool = False
    waiting: int = 0
    begun: float = field(default_factory=time.monotonic)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def add(self, frame: dict[str, Any]) -> None:
        self.frames.append(frame)
        self._wake()

    def finish(self) -> None:
        self.done = True
        self._wake()

    def _wake(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def wait_done(self, until: float) -> bool:
        """Whether the run is over before `until` (monotonic seconds)."""
        while not self.done:
            left = until - time.monotonic()
            if left <= 0:
                return False
            try:
                await asyncio.wait_for(self.changed.wait(), left)
            except TimeoutError:
                return self.done
        return True

    async def follow(self, start: int = 0) -> AsyncIterator[tuple[int, dict[str, Any]]]:
        """Frames from number `start` on as they come, to the run's end."""
        at = start
        while True:
            changed = self.changed
            for frame in self.frames[at:]:
                at += 1
                yield at, frame
            if self.done and at >= len(self.frames):
                return
            if at >= len(self.frames):
                await changed.wait()


class Cases:
    """All runs of this process, bounded in number and in time."""

    def __init__(self, ttl_s: float) -> None:
        """`ttl_s`: how long a run that is over can be read and joined."""
        self._ttl_s = ttl_s
        self._by_id: dict[str, Case] = {}
        self._by_key: dict[str, Case] = {}

    def get(self, case_id: str) -> Case | None:
        self._sweep()
        return self._by_id.get(case_id)

    def known(self, key: str) -> Case | None:
        """The run under a key, over or not, unless it failed."""
        self._sweep()
        found = self._by_key.get(key)
        return found if found is not None and found.error is None else None

    def start(self, key: str, language: Language, work: Callable[[Case], Awaitable[None]]) -> Case:
        """A new run. Raises `Overloaded` when there are as many as this process keeps."""
        self._sweep()
        if len(self._by_id) >= MOST_CASES:
            raise Overloaded(f"{MOST_CASES} cases are open: retry in a moment")
        case = Case(str(uuid.uuid4()), key, language)
        self._by_id[case.id] = self._by_key[key] = case
        case.task = asyncio.create_task(self._run(case, work))
        return case

    async def _run(self, case: Case, work: Callable[[Case], Awaitable[None]]) -> None:
        try:
            await work(case)
        finally:
            if case.error is not None or not case.answer:
                self._forget(case)
            case.finish()

    def _forget(self, case: Case) -> None:
        """A run that failed is not joined again; its page stays, to say so, where a link leads to it."""
        if self._by_key.get(case.key) is case:
            del self._by_key[case.key]
        if not case.published:
            self._by_id.pop(case.id, None)

    @contextlib.contextmanager
    def waiting(self, case: Case) -> Iterator[None]:
        """Holds a run while a call waits for it; the last one to leave aborts it, unless a link leads to it."""
        case.waiting += 1
        try:
            yield
        finally:
            case.waiting -= 1
            if not case.waiting and not case.published and not case.done and case.task is not None:
                log.info("nobody waits, case aborted", extra=fields(case=case.id))
                self._forget(case)  # at once: nobody may join what is about to end
                case.task.cancel()

    def _sweep(self) -> None:
        """Forgets what is over and old."""
        limit = time.monotonic() - self._ttl_s
        old = {case.id for case in self._by_id.values() if case.done and case.begun < limit}
        if old:
            self._by_id = {i: case for i, case in self._by_id.items() if i not in old}
            self._by_key = {key: case for key, case in self._by_key.items() if case.id not in old}

    async def run(self) -> None:
        """Waits until it is cancelled, with the server's end; then aborts what runs."""
        try:
            await asyncio.Event().wait()
        finally:
            await self._abort_all()

    async def _abort_all(self) -> None:
        tasks = [case.task for case in self._by_id.values() if case.task is not None and not case.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
