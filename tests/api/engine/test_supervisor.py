"""One engine kept alive: started, warmed up, and started again with a growing pause when it has died."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from services.api.engine import supervisor as module
from services.api.engine.supervisor import Supervisor
from services.api.errors import EngineUnavailable
from services.contract.chat_format import ChatFormat
from tests.fakes import FakeEngine, Pen
from tests.running import until


@pytest.fixture
def engine(chat_format: ChatFormat, pen: Pen) -> FakeEngine:
    return FakeEngine(chat_format, pen.answer("答"))


@pytest.fixture(autouse=True)
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.002)


async def nothing() -> None:
    return None


@contextlib.asynccontextmanager
async def running(
    engine: FakeEngine, warm_up: Callable = nothing, pause_s: float = 0.01, **hooks
) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(engine, warm_up, pause_s, **hooks)
    task = asyncio.create_task(supervisor.run())
    try:
        yield supervisor
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await supervisor.stop()


async def test_it_is_ready_only_after_the_warm_up(engine) -> None:
    warm = asyncio.Event()
    seconds: list[float] = []
    async with running(engine, warm.wait, on_ready=seconds.append) as supervisor:
        assert (supervisor.is_ready, supervisor.what) == (False, "starting")
        await until(lambda: supervisor.what == "warming up")
        assert engine.state == "ready"
        assert not supervisor.is_ready
        with pytest.raises(EngineUnavailable, match="warming up"):
            supervisor.require_ready()
        warm.set()
        await until(lambda: supervisor.is_ready)
        supervisor.require_ready()
        assert supervisor.what == "ready"
        assert len(seconds) == 1


async def test_a_dead_engine_is_not_ready_at_once_and_restarted_in_place(engine) -> None:
    restarts: list[int] = []
    async with running(engine, on_restart=lambda: restarts.append(1)) as supervisor:
        await until(lambda: supervisor.is_ready)
        engine.die()
        assert (supervisor.is_ready, supervisor.what) == (False, "restarting")
        await until(lambda: supervisor.is_ready)
    assert (engine.starts, len(restarts)) == (2, 1)
    assert engine.stops >= 1, "the dead engine's memory was not freed before the new start"


async def test_a_restart_warms_up_again(engine) -> None:
    warmed: list[int] = []

    async def warm_up() -> None:
        warmed.append(engine.starts)

    async with running(engine, warm_up) as supervisor:
        await until(lambda: supervisor.is_ready)
        engine.die()
        await until(lambda: supervisor.is_ready)
    assert warmed == [1, 2]


async def pauses_of(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, deaths: int) -> list[float]:
    """What it sleeps between starts, when every start but the first fails `deaths` times."""
    slept: list[float] = []
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        if seconds not in (module.LOOK_EVERY_S, 0):
            slept.append(seconds)
        await sleep(0)

    async with running(engine, pause_s=1.0) as supervisor:
        await until(lambda: supervisor.is_ready)
        monkeypatch.setattr(module.asyncio, "sleep", record)
        engine.start_errors = [RuntimeError("no memory")] * deaths
        engine.die()
        for _ in range(10_000):
            await sleep(0)
            if supervisor.is_ready:
                break
        assert supervisor.is_ready
        monkeypatch.undo()
    return slept


async def test_the_pause_grows_up_to_a_limit(engine, monkeypatch) -> None:
    assert await pauses_of(engine, monkeypatch, 8) == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_an_engine_that_was_well_for_long_gets_a_short_pause_again(engine, monkeypatch) -> None:
    monkeypatch.setattr(module, "STEADY_AFTER_S", 0.0)
    assert await pauses_of(engine, monkeypatch, 3) == [1, 1, 1, 1]


async def test_a_failed_first_start_is_raised(engine) -> None:
    engine.start_errors = [RuntimeError("no such weights")]
    with pytest.raises(RuntimeError, match="no such weights"):
        await Supervisor(engine, nothing, 0.01).run()
    assert engine.starts == 1


async def test_a_failed_first_warm_up_is_raised(engine) -> None:
    async def warm_up() -> None:
        raise RuntimeError("kernel")

    with pytest.raises(RuntimeError, match="kernel"):
        await Supervisor(engine, warm_up, 0.01).run()


async def test_a_failed_restart_is_tried_again(engine) -> None:
    async with running(engine) as supervisor:
        await until(lambda: supervisor.is_ready)
        engine.start_errors = [RuntimeError("busy"), RuntimeError("busy")]
        engine.die()
        await until(lambda: supervisor.is_ready)
    assert engine.starts == 4


async def test_an_engine_that_cannot_even_be_stopped_is_restarted_all_the_same(engine, monkeypatch) -> None:
    stop = engine.stop

    async def stuck() -> None:
        monkeypatch.setattr(engine, "stop", stop)
        raise RuntimeError("the process is a zombie")

    async with running(engine) as supervisor:
        await until(lambda: supervisor.is_ready)
        monkeypatch.setattr(engine, "stop", stuck)
        engine.die()
        await until(lambda: supervisor.is_ready)
    assert engine.starts == 2


async def test_an_engine_that_was_stopped_on_purpose_stays_stopped(engine) -> None:
    """The end of a drain: streams that ran too long end with their engine, and nothing starts it again."""
    restarts: list[int] = []
    async with running(engine, on_restart=lambda: restarts.append(1)) as supervisor:
        await until(lambda: supervisor.is_ready)
        await supervisor.stop()
        assert supervisor.what == "stopped"
        await asyncio.sleep(0.05)
        assert (engine.starts, restarts) == (1, [])
        assert supervisor.what == "stopped"
        assert not supervisor.is_ready


async def test_an_engine_that_is_stopped_while_it_starts_does_not_stay_up(engine) -> None:
    engine.start_gate = asyncio.Event()
    async with running(engine) as supervisor:
        await until(lambda: engine.starts == 1)
        await supervisor.stop()
        engine.start_gate.set()
        await until(lambda: engine.stops == 2)
        assert engine.state == "stopped"
        assert (supervisor.is_ready, supervisor.what) == (False, "stopped")


async def test_an_engine_that_is_stopped_during_the_pause_is_not_started_again(engine) -> None:
    async with running(engine, pause_s=0.02) as supervisor:
        await until(lambda: supervisor.is_ready)
        engine.die()
        await until(lambda: engine.stops == 1)
        await supervisor.stop()
        await asyncio.sleep(0.06)
        assert engine.starts == 1
