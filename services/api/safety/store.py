"""The policy in force, and its replacement while requests run: a request keeps the one that it began with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from services.api.safety.judge import Judge
from services.api.safety.opening import Opening
from services.api.safety.policy import FOLDER, PolicyError, read_policy
from services.api.safety.rules import default_rules
from services.api.safety.seed import SeedJudge

log = logging.getLogger(__name__)

Profile = Literal["default", "seed", "off"]


class PolicyStore:
    """Reads the profile's policy at once, so that a service with a broken one does not start."""

    def __init__(
        self, profile: Profile, folder: Path | None = None, on_reload: Callable[[str], None] = lambda result: None
    ) -> None:
        """`on_reload` is told `loaded` or `refused`. Raises `PolicyError`."""
        self._profile = profile
        self._folder = folder or FOLDER
        self._on_reload = on_reload
        self._stamp = self._look()
        self._current = self._read()

    @property
    def current(self) -> Opening | None:
        """The judge for a new request; `None` with the guard off."""
        return self._current

    async def run(self, every_s: float) -> None:
        """Looks for changed files until it is cancelled. A policy that is refused changes nothing."""
        while True:
            await asyncio.sleep(every_s)
            stamp = await asyncio.to_thread(self._look)
            if stamp != self._stamp:
                self._stamp = stamp
                await self.reload()

    async def reload(self) -> bool:
        """Reads the folder again, beside the requests. Whether it is in force now."""
        try:
            fresh = await asyncio.to_thread(self._read)
        except (PolicyError, OSError) as error:
            log.error("safety policy refused, the old one stays in force: %s", " | ".join(str(error).splitlines()[:5]))
            self._on_reload("refused")
            return False
        self._current = fresh
        self._on_reload("loaded")
        log.info("safety policy %s is in force", fresh.label if fresh else "off")
        return True

    def _read(self) -> Opening | None:
        if self._profile == "off":
            return None
        if self._profile == "seed":
            return SeedJudge()
        return Judge(read_policy(self._folder), default_rules())

    def _look(self) -> tuple[tuple[str, int, int], ...]:
        """Names, sizes and times of the policy's files."""
        if self._profile != "default":
            return ()
        try:
            found = [(path.name, path.stat()) for path in sorted(self._folder.glob("*.yaml"))]
        except OSError:
            return ()
        return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)
