"""Keeps one engine alive: start, warm-up, ready; and again, with a growing pause, when it has died."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from services.api.engine.base import Engine
from services.api.errors import EngineUnavailable
from services.api.logs import fields

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
LONGEST_PAUSE_S = 60.0
STEADY_AFTER_S = 120.0  # an engine that lived this long was well: the next pause is short again


class Supervisor:
    """Owns the engine's life. `run` is one long task; `is_ready` tells `/readyz`."""

    def __init__(
        self,
        engine: Engine,
        warm_up: Callable[[], Awaitable[None]],
        first_pause_s: float,
        on_ready: Callable[[float], None] = lambda seconds: None,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._warm_up = warm_up
        self._first_pause_s = first_pause_s
        self._on_ready = on_ready
        self._on_restart = on_restart
        self._warm = False
        self._stopped = False
        self._what = "starting"

    @property
    def is_ready(self) -> bool:
        return self._warm and not self._stopped and self._engine.state == "ready"

    @property
    def what(self) -> str:
        """What it is doing: starting, warming up, ready, restarting, stopped."""
        if self._stopped:
            return "stopped"
        return self._what if self._what != "ready" or self.is_ready else "restarting"

    def require_ready(self) -> None:
        """Raises `EngineUnavailable` with what is going on."""
        if not self.is_ready:
            raise EngineUnavailable(f"the model is {self.what}: retry in a few seconds; /readyz says when it is ready")

    async def run(self) -> None:
        """Until cancelled or stopped. Raises what the very first start raises: a server that never worked says so and ends."""
        pause_s = self._first_pause_s
        first = True
        while not self._stopped:
            try:
                started = time.monotonic()
                await self._bring_up()
                first = False
                self._on_ready(time.monotonic() - started)
                while self.is_ready:  # noqa: ASYNC110 - the engine's death has no event that all vLLM releases share
                    await asyncio.sleep(LOOK_EVERY_S)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if first and not self._stopped:
                    raise
                log.error("the engine did not start again", extra=fields(error=str(error)))
            if self._stopped:  # perhaps while it was starting: then it has come up after all
                await self._free()
                return
            self._warm = False
            self._what = "restarting"
            if time.monotonic() - started > STEADY_AFTER_S:
                pause_s = self._first_pause_s
            log.error("the engine has died and is restarted", extra=fields(pause_s=pause_s))
            self._on_restart()
            await self._free()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def stop(self) -> None:
        """Ends the engine for good."""
        self._warm = False
        self._stopped = True
        await self._engine.stop()

    async def _free(self) -> None:
        """Frees what a dead engine holds. It may fail at that too, which must not end the attempts to start another."""
        try:
            await self._engine.stop()
        except Exception as error:  # noqa: BLE001 - whatever a dead engine raises
            log.warning("the dead engine could not be stopped", extra=fields(error=str(error)))

    async def _bring_up(self) -> None:
        await self._engine.start()
        self._what = "warming up"
        await self._warm_up()
        self._warm = True
        self._what = "ready"
