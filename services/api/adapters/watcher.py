"""Looks at the shared volume, again and again: network volumes send no events. What changed is taken up, what is bad is
refused with its reason, and a volume that does not answer changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.api.adapters.registry import AdapterRegistry
from services.api.engine.base import AdapterRefused, EngineDied
from services.api.errors import Overloaded
from services.api.logs import fields
from services.contract.adapter_manifest import AdapterError, adapter_names, read_current

log = logging.getLogger(__name__)

YOUNG_S = 20.0  # a version that fails its checks may still be on its way to this host: so long it is tried often
RETRY_S = 1.0
RETRY_OLD_S = 60.0
GONE_AFTER_SCANS = 3  # a listing may miss a name for a moment while its folder is replaced

Found = dict[str, str | AdapterError | None]


@dataclass(slots=True)
class Attempt:
    """A version that could not be taken up: since when, when last, and whether trying again is of no use."""

    version: str
    since: float
    last: float
    given_up: bool = False

    def rests(self, now: float) -> bool:
        pause_s = RETRY_S if now - self.since < YOUNG_S else RETRY_OLD_S
        return self.given_up or now - self.last < pause_s


class AdapterWatcher:
    """One long task; `scan` is one look."""

    def __init__(
        self,
        volume: Path,
        registry: AdapterRegistry,
        poll_s: float,
        timeout_s: float = 10.0,
        is_ready: Callable[[], bool] = lambda: True,
        on_volume: Callable[[bool], None] = lambda up: None,
    ) -> None:
        self._volume = volume
        self._registry = registry
        self._poll_s = poll_s
        self._timeout_s = timeout_s
        self._is_ready = is_ready
        self._on_volume = on_volume
        self._up: bool | None = None
        self._reading: asyncio.Task[Found] | None = None
        self._failed: dict[str, Attempt] = {}
        self._missing: dict[str, int] = {}

    async def run(self) -> None:
        """Until cancelled; looks while the engine is ready. No error of a volume or an adapter ends it."""
        try:
            while True:
                try:
                    if self._is_ready():
                        await self.scan()
                except Exception:
                    log.exception("looking at the adapter volume failed; it is tried again")
                await asyncio.sleep(self._poll_s)
        finally:
            if self._reading is not None:
                self._reading.cancel()

    async def scan(self) -> None:
        """One look: what `CURRENT` names is served afterwards, or refused, or not yet complete."""
        try:
            found = await self._read()
        except (OSError, TimeoutError) as error:
            self._report_volume(False, str(error))
            return
        self._report_volume(True, "")
        for name, current in found.items():
            self._missing.pop(name, None)
            if isinstance(current, AdapterError):
                log.debug("unreadable CURRENT", extra=fields(adapter=name, reason=str(current)))
            elif current is not None and current != self._registry.current(name):
                await self._take_up(name, current)
            else:
                self._failed.pop(name, None)
        for name in self._registry.names():
            if name not in found:
                await self._miss(name)

    async def _read(self) -> Found:
        """What lies on the volume. Raises OSError, and TimeoutError when there is no answer in time.

        One read at a time: on a volume that hangs, each further one would hold one more of the process's threads.
        """
        if self._reading is None or self._reading.done():  # what came after its time is old news
            self._reading = asyncio.create_task(asyncio.to_thread(_read_volume, self._volume))
        done, _ = await asyncio.wait({self._reading}, timeout=self._timeout_s)
        if not done:
            raise TimeoutError("no answer in time")
        found = self._reading.result()
        if not found and self._registry.names() and await asyncio.to_thread(_is_empty, self._volume):
            raise OSError("it is empty, and was not before: not mounted?")
        return found

    async def _take_up(self, name: str, version: str) -> None:
        now = time.monotonic()
        attempt = self._failed.get(name)
        if attempt is not None and attempt.version == version and attempt.rests(now):
            return
        try:
            if self._registry.is_full and self._registry.current(name) is None:
                self._registry.announce(name, version)
                return
            await self._registry.promote(name, version)
        except (EngineDied, Overloaded) as error:
            log.info("adapter waits", extra=fields(adapter=name, version=version, reason=str(error)))
        except (AdapterError, AdapterRefused) as error:
            self._note_failure(name, version, str(error), now, final=isinstance(error, AdapterRefused))
        except Exception as error:
            log.exception("an adapter could not be read", extra=fields(adapter=name, version=version))
            self._note_failure(name, version, f"it cannot be read ({type(error).__name__})", now, final=False)

    def _note_failure(self, name: str, version: str, reason: str, now: float, final: bool) -> None:
        attempt = self._failed.get(name)
        if attempt is None or attempt.version != version:
            attempt = self._failed[name] = Attempt(version, now, now)
            self._registry.refuse(name, version, reason)
            kept = self._registry.current(name)
            log.warning("adapter refused", extra=fields(adapter=name, version=version, reason=reason, serving=kept))
        attempt.last = time.monotonic()
        attempt.given_up = final

    async def _miss(self, name: str) -> None:
        self._missing[name] = self._missing.get(name, 0) + 1
        if self._missing[name] >= GONE_AFTER_SCANS:
            self._missing.pop(name)
            await self._registry.withdraw(name)

    def _report_volume(self, up: bool, reason: str) -> None:
        if up != self._up:
            self._up = up
            self._on_volume(up)
            if up:
                log.info("adapter volume answers", extra=fields(volume=str(self._volume)))
            else:
                log.warning(
                    "adapter volume does not answer; what is loaded stays served",
                    extra=fields(volume=str(self._volume), reason=reason),
                )


def _read_volume(volume: Path) -> Found:
    """Every name and its current version, or why that cannot be read. Raises OSError when the volume is not there."""
    found: Found = {}
    for name in adapter_names(volume):
        try:
            found[name] = read_current(volume, name)
        except AdapterError as error:
            found[name] = error
    return found


def _is_empty(volume: Path) -> bool:
    """True for what an unmounted volume leaves: the bare folder that it was mounted on."""
    return next(volume.iterdir(), None) is None
