"""Turns of one session one at a time, in order of arrival."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.api.memory.errors import SessionBusy
from services.api.memory.order import TurnOrder


async def test_sessions_do_not_wait_for_each_other() -> None:
    order = TurnOrder(wait_s=0.05)
    async with order.hold("a"), order.hold("b"), order.hold(("a", "b")) as left:
        assert 0 < left <= 0.05
        assert len(order) == 3
    assert len(order) == 0


async def test_the_wait_is_bounded() -> None:
    order = TurnOrder(wait_s=0.05)
    async with order.hold("a"):
        with pytest.raises(SessionBusy) as caught:
            async with order.hold("a"):
                pytest.fail("it was not ours")
        assert caught.value.retry_after_s
    async with order.hold("a"):
        pass
    assert len(order) == 0


async def test_too_many_are_refused_at_once() -> None:
    order = TurnOrder(wait_s=10, most_waiting=2)
    inside = asyncio.Event()

    async def wait() -> None:
        async with order.hold("a"):
            await inside.wait()

    tasks = [asyncio.create_task(wait()) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(SessionBusy):
        async with order.hold("a"):
            pass
    inside.set()
    await asyncio.gather(*tasks)
    assert len(order) == 0


async def test_an_error_inside_frees_the_session() -> None:
    order = TurnOrder(wait_s=1)
    with pytest.raises(ZeroDivisionError):
        async with order.hold("a"):
            raise ZeroDivisionError
    assert len(order) == 0


# One task: its session, and after how many steps of the loop it is cancelled, if it is.
TASK = st.tuples(st.sampled_from("ab"), st.none() | st.integers(0, 12), st.integers(0, 3))


@settings(max_examples=150)
@given(st.lists(TASK, min_size=1, max_size=10))
def test_order_holds_whoever_is_cancelled(plan: Sequence[tuple[str, int | None, int]]) -> None:
    asyncio.run(_play(plan))


async def _play(plan: Sequence[tuple[str, int | None, int]]) -> None:
    order = TurnOrder(wait_s=30)
    entered: dict[str, list[int]] = {"a": [], "b": []}
    inside: set[str] = set()

    async def turn(n: int, key: str, steps: int) -> None:
        async with order.hold(key):
            assert key not in inside
            inside.add(key)
            entered[key].append(n)
            try:
                for _ in range(steps):
                    await asyncio.sleep(0)
            finally:
                inside.remove(key)

    tasks = [asyncio.create_task(turn(n, key, steps)) for n, (key, _, steps) in enumerate(plan)]
    for step in range(13):
        for task, (_, cancelled_at, _) in zip(tasks, plan, strict=True):
            if cancelled_at == step:
                task.cancel()
        await asyncio.sleep(0)
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    for n, (result, (key, cancelled_at, _)) in enumerate(zip(results, plan, strict=True)):
        if cancelled_at is None:
            assert result is None
            assert n in entered[key]
    assert all(places == sorted(places) for places in entered.values())
    assert len(order) == 0
