"""Which adapter a request gets: names point to versions, versions are loaded once, nothing changes under a running request.

`model: "<name>"` is the current version, `"<name>@<version>"` a pinned one. A lease keeps its version loaded until the
request has ended. The engine is never asked for an adapter that it did not load, and never has to evict one by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from services.api.adapters.cache import AdapterCache
from services.api.engine.base import AdapterHandle, AdapterRefused, Engine, EngineDied
from services.api.errors import ModelNotFound, Overloaded
from services.api.logs import fields
from services.contract.adapter_manifest import VERSION_FORM, AdapterError, Manifest

log = logging.getLogger(__name__)

State = Literal["loading", "ready", "retired", "unloaded", "refused"]


@dataclass(slots=True)
class Loaded:
    """One version as the registry knows it. `leases` counts requests that use it or wait for it."""

    name: str
    version: str
    state: State = "loading"
    reason: str | None = None
    handle: AdapterHandle | None = None
    manifest: Manifest | None = None
    leases: int = 0
    pinned: bool = False  # asked for by its version: stays loaded as long as there is room
    watched: bool = False  # the volume named it as current
    used_at: float = 0.0
    loaded_at: float | None = None
    load_s: float | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class Lease:
    """What a request holds: the engine's handle and the system prompt that the adapter was trained with."""

    name: str
    version: str
    handle: AdapterHandle
    system_prompt: str | None


# vLLM's GPU runner keeps adapters' ids as 32-bit integers; a larger one ends the engine (seen on 0.26).
LARGEST_ENGINE_ID = 2**31 - 1

Canary = Callable[[AdapterHandle], Awaitable[None]]


def engine_id(name: str, version: str) -> int:
    """The same number in every process and replica, without coordination: from a hash, 1 to `LARGEST_ENGINE_ID`."""
    return int(hashlib.sha256(f"{name}@{version}".encode()).hexdigest()[:15], 16) % LARGEST_ENGINE_ID + 1


class AdapterRegistry:
    """All versions that this process has met, and the current one of each name."""

    def __init__(
        self,
        engine: Engine,
        cache: AdapterCache,
        canary: Canary,
        volume: Path,
        most_loaded: int,
        on_change: Callable[[str, str], None] = lambda state, name: None,
        reserved: Collection[str] = (),
    ) -> None:
        """`canary` raises `AdapterRefused` when a loaded adapter answers nonsense. `most_loaded` versions at a time.

        `reserved` are the base model's names, which no adapter can take.
        """
        self._engine = engine
        self._cache = cache
        self._canary = canary
        self._volume = volume
        self._most_loaded = most_loaded
        self._on_change = on_change
        self._reserved = reserved
        self._current: dict[str, str] = {}
        self._versions: dict[tuple[str, str], Loaded] = {}
        self._making_room = asyncio.Lock()  # one load at a time counts the places that are taken
        self._unfinished = set[asyncio.Future[None]]()

    # For requests

    def names(self) -> list[str]:
        """Names that a request may give as `model` now."""
        return sorted(self._current)

    def knows(self, model: str) -> bool:
        name, pin, version = model.partition("@")
        return name in self._current and (not pin or bool(VERSION_FORM.fullmatch(version)))

    @contextlib.asynccontextmanager
    async def lease(self, model: str) -> AsyncIterator[Lease]:
        """The adapter that `model` names, kept loaded meanwhile.

        Raises `ModelNotFound` for a name or version that does not exist or was refused, `Overloaded` when every place is
        held by a running request.
        """
        entry = self._claim(model)  # counted before it is loaded, so that nobody unloads it in between
        try:
            if entry.state != "ready":
                await self._to_its_end(self._load_for(entry, model))
            assert entry.handle is not None
            assert entry.manifest is not None
            entry.used_at = time.monotonic()
            yield Lease(entry.name, entry.version, entry.handle, entry.manifest.system_prompt)
        finally:
            entry.leases -= 1
            if entry.leases == 0 and not self._is_wanted(entry):
                await self._to_its_end(self._unload(entry))

    def _claim(self, model: str) -> Loaded:
        if not self.knows(model):
            raise _unknown(model)
        name, _, pinned = model.partition("@")
        version = pinned or self._current[name]
        entry = self._versions.setdefault((name, version), Loaded(name, version))
        entry.leases += 1
        entry.pinned = entry.pinned or bool(pinned)
        return entry

    async def _load_for(self, entry: Loaded, model: str) -> None:
        try:
            await self.load(entry.name, entry.version)
        except (AdapterError, AdapterRefused) as error:
            if not entry.watched and entry.leases <= 1:
                self._versions.pop((entry.name, entry.version), None)  # not everything that a client makes up is kept
            raise ModelNotFound(f"the adapter {model[:120]} cannot be served: {error}", param="model") from error

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Waits for `work`, which goes on when the request that began it is cancelled: half a load helps nobody."""
        task = asyncio.ensure_future(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to hear of it
        await asyncio.shield(task)

    # For the watcher

    def current(self, name: str) -> str | None:
        return self._current.get(name)

    @property
    def is_full(self) -> bool:
        """True when a further version would push out another."""
        return sum(entry.handle is not None for entry in self._versions.values()) >= self._most_loaded

    def announce(self, name: str, version: str) -> None:
        """Makes a new name known; its version is loaded, or refused, on its first use. Raises `AdapterRefused`."""
        self._refuse_reserved(name)
        entry = self._versions.setdefault((name, version), Loaded(name, version, "unloaded"))
        entry.watched = True
        self._current[name] = version
        log.info("adapter known, loaded on its first use", extra=fields(adapter=name, version=version))

    async def promote(self, name: str, version: str) -> None:
        """Loads a version and points its name to it; the one before serves its running requests to their end.

        Raises `AdapterError` or `AdapterRefused`; then nothing has changed.
        """
        entry = await self.load(name, version)
        entry.watched = True
        before = self._current.get(name)
        self._current[name] = version
        if before is not None and before != version:
            await self._retire(self._versions[(name, before)])
        log.info("adapter served", extra=fields(adapter=name, version=version, before=before))

    async def withdraw(self, name: str) -> None:
        """The name is gone from the volume: new requests do not find it, running ones end in peace."""
        version = self._current.pop(name, None)
        if version is not None:
            for entry in [e for e in self._versions.values() if e.name == name]:
                await self._retire(entry)
            log.info("adapter withdrawn", extra=fields(adapter=name, version=version))

    def refuse(self, name: str, version: str, reason: str) -> None:
        """Remembers why a version is not served, for GET /v1/adapters."""
        entry = self._versions.setdefault((name, version), Loaded(name, version))
        entry.watched = True
        if entry.state != "ready":
            entry.state, entry.reason = "refused", reason
            self._on_change("refused", name)

    async def load(self, name: str, version: str) -> Loaded:
        """One version, loaded and tried; concurrent callers wait for the same load. Raises as `promote`."""
        entry = self._versions.setdefault((name, version), Loaded(name, version))
        async with entry.lock:
            if entry.handle is not None:
                entry.state = "ready"
                return entry
            entry.state, entry.reason = "loading", None
            try:
                await self._load(entry)
            except (AdapterError, AdapterRefused) as error:
                entry.state, entry.reason = "refused", str(error)
                raise
            except BaseException as error:  # not the adapter's fault
                entry.state, entry.reason = "unloaded", str(error) or None
                raise
            self._on_change("ready", name)
            return entry

    async def restore(self) -> None:
        """After an engine restart: loads again what was loaded. A version that fails is refused, the others go on."""
        for entry in list(self._versions.values()):
            if entry.handle is None:
                continue
            try:
                await self._engine.load_adapter(entry.handle)
            except AdapterRefused as error:
                entry.state, entry.reason, entry.handle = "refused", str(error), None

    def describe(self) -> list[dict[str, Any]]:
        """What GET /v1/adapters shows."""
        versions: dict[str, list[dict[str, Any]]] = {}
        for (name, _), entry in self._versions.items():
            versions.setdefault(name, []).append(self._describe(entry))
        return [
            {"name": name, "current": self._current.get(name), "versions": versions[name]} for name in sorted(versions)
        ]

    def _describe(self, entry: Loaded) -> dict[str, Any]:
        manifest = entry.manifest
        known: dict[str, Any] = {
            "version": entry.version,
            "state": entry.state,
            "reason": entry.reason,
            "requests": entry.leases,
        }
        known |= {"model": f"{entry.name}@{entry.version}", "load_seconds": entry.load_s, "loaded_at": entry.loaded_at}
        if manifest is not None:
            known |= {"created": manifest.created, "rank": manifest.rank, "targets": list(manifest.targets)}
            known |= {"metrics": manifest.metrics, "data_sha256": manifest.data_sha256, "base": manifest.base.id}
        return known

    # Inside

    async def _load(self, entry: Loaded) -> None:
        self._refuse_reserved(entry.name)
        begun = time.monotonic()
        source = self._volume / entry.name / entry.version
        folder, entry.manifest = await asyncio.to_thread(self._cache.fetch, source, entry.name, entry.version)
        async with self._making_room:
            await self._make_room()
            handle = AdapterHandle(f"{entry.name}@{entry.version}", self._free_id(entry), str(folder))
            try:
                await self._engine.load_adapter(handle)
                await self._canary(handle)
            except BaseException as error:
                # vLLM may keep the id of a load that failed, and then claim that it is loaded.
                with contextlib.suppress(AdapterRefused, EngineDied):
                    await self._engine.unload_adapter(handle)
                if isinstance(error, AdapterRefused):
                    await asyncio.to_thread(self._cache.drop, entry.name, entry.version)
                raise
            entry.handle, entry.state = handle, "ready"
        entry.loaded_at, entry.load_s = time.time(), round(time.monotonic() - begun, 4)
        entry.used_at = time.monotonic()

    def _free_id(self, entry: Loaded) -> int:
        """The version's own number, or the next one when another loaded version happens to have the same."""
        taken = {e.handle.engine_id for e in self._versions.values() if e.handle is not None and e is not entry}
        number = engine_id(entry.name, entry.version)
        while number in taken:
            number = number % LARGEST_ENGINE_ID + 1
        return number

    def _refuse_reserved(self, name: str) -> None:
        if name in self._reserved:
            raise AdapterRefused(f"{name} is a name of the base model: publish it under another")

    async def _make_room(self) -> None:
        """Unloads the version that was idle longest; the engine itself must never have to choose."""
        held = [e for e in self._versions.values() if e.handle is not None]
        if len(held) < self._most_loaded:
            return
        idle = [e for e in held if e.leases == 0]
        if not idle:
            raise Overloaded("every adapter place is held by a running request: retry in a second", param="model")
        await self._unload(min(idle, key=lambda e: (e.state == "ready", e.used_at)))

    def _is_wanted(self, entry: Loaded) -> bool:
        current = self._current.get(entry.name)
        return current == entry.version or (current is not None and entry.pinned)

    async def _retire(self, entry: Loaded) -> None:
        if entry.handle is None or self._is_wanted(entry):
            return
        entry.state = "retired"
        self._on_change("retired", entry.name)
        if entry.leases == 0:
            await self._unload(entry)

    async def _unload(self, entry: Loaded) -> None:
        """Frees its place, unless a request came in between. A current version's private copy stays for its next use."""
        async with entry.lock:
            if entry.handle is None or entry.leases:
                return
            handle, entry.handle, entry.state, entry.pinned = entry.handle, None, "unloaded", False
            with contextlib.suppress(AdapterRefused, EngineDied):
                await self._engine.unload_adapter(handle)
            if self._current.get(entry.name) != entry.version:
                await asyncio.to_thread(self._cache.drop, entry.name, entry.version)


def _unknown(model: str) -> ModelNotFound:
    return ModelNotFound(f"the adapter {model[:120]!r} does not exist here: GET /v1/adapters lists them", param="model")
