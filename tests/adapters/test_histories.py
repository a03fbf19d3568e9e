"""Any history of a volume and any requests meanwhile: no request is ever without its adapter, and the end is tidy."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.api.adapters.watcher import GONE_AFTER_SCANS
from services.api.errors import ModelNotFound, Overloaded
from tests.adapters.conftest import Side, voice
from tests.fakes import Pen

NAMES = ("a", "b", "c")
name, seed, nth = st.sampled_from(NAMES), st.integers(0, 3), st.integers(0, 9)
STEP = st.one_of(
    st.tuples(st.just("publish"), name, seed),
    st.tuples(st.just("break"), name, seed),
    st.tuples(st.just("rollback"), name, nth),
    st.tuples(st.just("withdraw"), name, st.just(0)),
    st.tuples(st.just("look"), st.just(""), st.integers(1, GONE_AFTER_SCANS)),
    st.tuples(st.just("lease"), name, st.just(0)),
    st.tuples(st.just("pin"), name, nth),
    st.tuples(st.just("release"), st.just(""), nth),
    st.tuples(st.just("leave"), st.just(""), nth),
    st.tuples(st.just("restart"), st.just(""), st.just(0)),
)


class History:
    """Requests that hold leases as tasks, so that they can end, and be cancelled, in any order."""

    def __init__(self, side: Side, pen: Pen) -> None:
        self.side = side
        self.pen = pen
        self.published: dict[str, list[str]] = {n: [] for n in NAMES}
        self.held: list[tuple[asyncio.Task[None], asyncio.Event, asyncio.Event]] = []

    async def take(self, step: tuple[str, str, int]) -> None:
        what, name, n = step
        volume, versions = self.side.volume, self.published[name] if name else []
        if what in ("publish", "break"):
            version = volume.publish(name, n + 10 * NAMES.index(name) + 100 * (what == "break"))
            versions.append(version)
            if what == "break":
                self.side.engine.broken_adapters.add(f"{name}@{version}")
        elif what == "rollback" and versions:
            volume.point(name, versions[n % len(versions)])
        elif what == "withdraw" and (volume.root / name / "CURRENT").exists():
            volume.remove(name)
        elif what == "look":
            for _ in range(n):
                await self.side.watcher.scan()
        elif what == "lease" or (what == "pin" and versions):
            await self.hold(name if what == "lease" else f"{name}@{versions[n % len(versions)]}")
        elif what in ("release", "leave") and self.held:
            await self.let_go(self.held.pop(n % len(self.held)), cancel=what == "leave")
        elif what == "restart":
            await self.restart()

    async def restart(self) -> None:
        for request in self.held:  # their streams have ended with the engine
            await self.let_go(request)
        self.held.clear()
        self.side.engine.die()
        await self.side.engine.start()
        await self.side.registry.restore()

    async def hold(self, model: str) -> None:
        release, holds = asyncio.Event(), asyncio.Event()

        async def request() -> None:
            try:
                with contextlib.suppress(ModelNotFound, Overloaded):
                    async with self.side.registry.lease(model) as lease:
                        holds.set()
                        await release.wait()
                        assert await self.side.generate(lease.handle) == voice(self.pen, lease.handle.name)
            finally:
                holds.set()

        task = asyncio.create_task(request())
        self.held.append((task, release, holds))
        if len(self.held) % 2:  # every other one is left in the middle of its loading
            await holds.wait()

    async def let_go(
        self, request: tuple[asyncio.Task[None], asyncio.Event, asyncio.Event], cancel: bool = False
    ) -> None:
        task, release, _ = request
        release.set()
        if cancel:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def check(self) -> None:
        assert self.side.engine.state == "ready", "a request met an adapter that was not loaded"
        assert self.side.engine.most_adapters <= 4
        for task, _, _ in self.held:
            assert not task.done() or task.exception() is None

    async def finish(self) -> None:
        """All requests end; every name gives what its CURRENT names or, that being broken, what was good before."""
        for request in self.held:
            await self.let_go(request)
        await asyncio.gather(*self.side.registry._unfinished, return_exceptions=True)
        for _ in range(GONE_AFTER_SCANS + 1):
            await self.side.watcher.scan()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=30))
async def test_no_request_is_ever_without_its_adapter(
    make_side: Callable[..., Side], volume, pen: Pen, steps: list[tuple[str, str, int]]
) -> None:
    for folder in (volume.root, volume.root.parent / "copies"):
        shutil.rmtree(folder, ignore_errors=True)
    volume.root.mkdir()
    side = make_side(most_loaded=4)
    await side.engine.start()
    history = History(side, pen)
    for step in steps:
        await history.take(step)
        await history.check()
    await history.finish()
    await history.check()
    current = {n: side.registry.current(n) for n in side.registry.names()}
    on_volume = {n for n in NAMES if (volume.root / n / "CURRENT").exists()}
    assert set(current) <= on_volume
    for n in on_volume - set(current):
        assert set(history.published[n]), "only a name whose versions were all refused is not served"
    loaded, pinned = side.loaded(), {e.handle.name for e in side.registry._versions.values() if e.pinned and e.handle}
    # All names have a place: what is loaded is what is current, and what was asked for by its version.
    assert {f"{n}@{v}" for n, v in current.items()} | pinned >= loaded
    assert not {m for m in loaded if m.partition("@")[0] not in current}
    assert side.copied() - {f"{n}@{v}" for n, v in current.items()} == pinned - {f"{n}@{v}" for n, v in current.items()}
    assert all(v["requests"] == 0 for a in side.registry.describe() for v in a["versions"])
    for n, version in current.items():
        assert await side.says(n) == voice(pen, f"{n}@{version}")
