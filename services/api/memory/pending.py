"""Turns that are being generated: how this process says that it lives, and how turns of dead ones become aborted."""

from __future__ import annotations

import asyncio
import logging
import time

from sqlalchemy.ext.asyncio import AsyncConnection

from services.api.memory.database import Database
from services.api.memory.errors import StoreUnavailable
from services.api.memory.owners import BEAT_S, Owners
from services.api.memory.queries import Queries

log = logging.getLogger(__name__)


class PendingTurns:
    """The pending turns of this process, and a look at those of others."""

    def __init__(self, database: Database, queries: Queries, owners: Owners) -> None:
        self._database = database
        self._queries = queries
        self._owners = owners
        self._running: set[tuple[int, int]] = set()
        self._finishing: dict[int, asyncio.Task[None]] = {}
        self._renewed = float("-inf")

    @property
    def owner(self) -> str:
        """This process, as its turns name it."""
        return self._owners.me.id

    async def open(self) -> int:
        """Enters this process and aborts what dead ones left; returns how many turns."""
        async with self._database.write() as connection:
            await self._renew(connection)
            await self._owners.forget_old(connection)
        return await self.abort_dead()

    async def run(self) -> None:
        """Says that we live, while turns are pending, until it is cancelled."""
        while True:
            await asyncio.sleep(BEAT_S)
            if not self._running:
                continue
            try:
                async with self._database.write() as connection:
                    await self._renew(connection)
            except StoreUnavailable as error:
                log.warning("the memory database does not answer: %s", error.reason)

    async def close(self, now: float) -> None:
        """Waits for what is being written and aborts the rest."""
        if self._finishing:
            await asyncio.wait(set(self._finishing.values()))
        async with self._database.write() as connection:
            await self._queries.abort_own(connection, self.owner, now)
            await self._owners.forget(connection)

    async def renew_if_due(self, connection: AsyncConnection) -> None:
        """Before a turn is begun: nobody may take its process for dead."""
        if time.monotonic() - self._renewed > BEAT_S / 2:
            await self._renew(connection)

    def begun(self, row: int, seq: int) -> None:
        self._running.add((row, seq))

    def over(self, row: int, seq: int) -> None:
        self._running.discard((row, seq))

    def finishing(self, row: int, task: asyncio.Task[None]) -> None:
        """A turn of this session is being written: `settled` waits for it, even when its caller has gone."""
        self._finishing[row] = task
        task.add_done_callback(lambda done: self._written(row, done))

    async def settled(self, row: int) -> bool:
        """Waits until no turn of this session is being written by this process; whether one was."""
        task = self._finishing.get(row)
        if task is None:
            return False
        await asyncio.wait({task})
        return True

    async def release(self, row: int, now: float) -> bool:
        """Aborts the pending turn of a session if it is an abandoned one of ours or a dead process's; whether it was."""
        async with self._database.read() as connection:
            dead = await self._owners.dead(connection)
        async with self._database.write() as connection:
            return await self.release_in(connection, row, now, dead)

    async def release_in(
        self, connection: AsyncConnection, row: int, now: float, dead: list[str] | None = None
    ) -> bool:
        """`release` inside a transaction."""
        gone = await self._owners.dead(connection) if dead is None else dead
        aborted = await self._owners.abort_turns(connection, gone)
        aborted += await self._queries.abort_own(connection, self.owner, now, row)
        return aborted > 0

    async def abort_dead(self) -> int:
        """Aborts the turns of dead processes; returns how many."""
        async with self._database.read() as connection:
            dead = await self._owners.dead(connection)
        if not dead:
            return 0
        async with self._database.write() as connection:
            return await self._owners.abort_turns(connection, dead)

    async def _renew(self, connection: AsyncConnection) -> None:
        self._renewed = time.monotonic()  # at once: of many turns that begin together one is enough
        try:
            await self._owners.renew(connection)
        except BaseException:
            self._renewed = float("-inf")
            raise

    def _written(self, row: int, task: asyncio.Task[None]) -> None:
        if self._finishing.get(row) is task:
            del self._finishing[row]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a turn was not stored: %s", getattr(error, "code", type(error).__name__))
