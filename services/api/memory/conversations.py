"""The sessions' memory as the request path meets it: opened beside the server, one turn of a session at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from services.api.memory.conversation import Conversation
from services.api.memory.errors import SessionError, SessionNotFound, StoreUnavailable
from services.api.memory.names import check_session_id
from services.api.memory.order import TurnOrder
from services.api.memory.recent import RecentHistories
from services.api.memory.store import SessionStore
from services.api.memory.turn_ids import TurnWriter

log = logging.getLogger(__name__)

SWEEP_S = 60.0
REOPEN_S = 2.0


class Memory:
    """Sessions as the request path meets them: opened beside the server, held for one turn at a time."""

    def __init__(self, store: SessionStore, writer: TurnWriter, wait_s: float) -> None:
        """`wait_s`: how long a turn waits for the one before it in its session."""
        self.store = store
        self._writer = writer
        self._order = TurnOrder(wait_s)
        self._recent = RecentHistories()
        self._is_open = False

    async def open(self) -> None:
        """The first try. A database that is away is tried again by `run`; what can only be mended by hand is raised."""
        try:
            await self.store.open()
            self._is_open = True
        except StoreUnavailable as error:
            log.error("memory: %s; trying again every %g s", error.message, REOPEN_S)

    async def run(self) -> None:
        """Sweeps once a minute; closes the store when cancelled."""
        try:
            while True:
                if not self._is_open:
                    await asyncio.sleep(REOPEN_S)
                    await self._reopen()
                    continue
                await asyncio.sleep(SWEEP_S)
                await self._sweep()
        finally:
            if self._is_open:
                self._is_open = False
                await self.store.close()

    async def _reopen(self) -> None:
        try:
            await self.store.open()
        except SessionError as error:
            log.warning("memory: %s", error.message)
        else:
            self._is_open = True
            log.info("memory: the database is back")

    async def _sweep(self) -> None:
        try:
            self._recent.forget_expired(time.time())
            swept = await self.store.sweep()
        except SessionError as error:
            log.warning("memory: sweep put off: %s", error.message)
        else:
            if swept.sessions or swept.turns_aborted:
                log.info(
                    "memory: %d expired sessions erased, %d lost turns closed", swept.sessions, swept.turns_aborted
                )

    def require_open(self) -> None:
        """Raises `StoreUnavailable` while the database has not been reached yet."""
        if not self._is_open:
            raise StoreUnavailable("the memory database cannot be reached: retry in a few seconds", "gone")

    async def delete(self, tenant: str, session_id: str) -> bool:
        """Erases a session, here too; see `SessionStore.delete`."""
        self.require_open()
        self.forget(tenant, session_id)
        return await self.store.delete(tenant, session_id)

    def forget(self, tenant: str, session_id: str) -> None:
        """Leaves nothing of a session in this process: its next turn reads the database."""
        self._recent.take(tenant, session_id)

    @contextlib.asynccontextmanager
    async def hold(self, tenant: str, session_id: str) -> AsyncIterator[Conversation]:
        """The session is ours inside: turns come one by one, in order of arrival. An unknown one is begun.

        Raises `SessionBusy`, `BadSessionId`, `StoreUnavailable`.
        """
        key = (tenant, check_session_id(session_id))
        self.require_open()
        async with self._order.hold(key) as wait_s:
            conversation = Conversation(self.store, self._writer, *key, self._recent)
            await conversation.open(wait_s)
            try:
                yield conversation
            finally:
                await conversation.abandon()

    @contextlib.asynccontextmanager
    async def go_on(
        self, tenant: str, session_id: str, seq: int, copy_id: str, *, stores: bool = True
    ) -> AsyncIterator[Conversation]:
        """The conversation up to turn `seq`: the session itself where that is its latest, else a copy named `copy_id`.

        `stores` false: it is only read, so nobody has to wait. Raises what `hold` and `recall` raise.
        """
        if stores:
            async with self.hold(tenant, session_id) as conversation:
                if conversation.latest == seq:
                    yield conversation
                    return
        conversation = await self.recall(tenant, session_id, seq, copy_id)
        try:
            yield conversation
        finally:
            await conversation.abandon()

    async def recall(self, tenant: str, session_id: str, upto: int, copy_id: str) -> Conversation:
        """A conversation that goes on from turn `upto` of a stored one under a new name, and leaves that one as it is.

        Raises `SessionNotFound` when there is no such turn.
        """
        self.require_open()
        history = await self.store.history(await self.store.get(tenant, session_id))
        if not any(turn.seq == upto for turn in history.turns):
            raise SessionNotFound("there is no such turn: it was never answered, or was deleted")
        conversation = Conversation(self.store, self._writer, tenant, copy_id)
        conversation.begin_as_copy(history, upto)
        return conversation
