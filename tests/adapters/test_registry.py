"""Which version a request gets, and how long it stays loaded."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

import pytest

from services.api.adapters.registry import LARGEST_ENGINE_ID, engine_id
from services.api.engine.base import AdapterRefused, EngineDied
from services.api.errors import ModelNotFound, Overloaded
from services.contract.adapter_manifest import AdapterError
from tests.adapters.conftest import Side, voice
from tests.fakes import Pen
from tests.running import until


async def publish(side: Side, name: str, seed: int = 0) -> str:
    """A version that is current on the volume and here."""
    version = side.volume.publish(name, seed)
    await side.registry.promote(name, version)
    return version


async def test_a_name_is_its_current_version(side: Side, pen: Pen) -> None:
    version = await publish(side, "cardio")
    assert await side.says("cardio") == voice(pen, f"cardio@{version}")
    assert side.registry.names() == ["cardio"]


async def test_an_engine_id_is_the_same_everywhere_and_never_shared() -> None:
    names = [(f"n{n}", f"{v:016x}") for n in range(100) for v in range(20)]
    assert len({engine_id(*pair) for pair in names}) == len(names)
    assert all(0 < engine_id(*pair) < 2**31 for pair in names)  # 32 bits with a sign, as vLLM's GPU runner has them


async def test_two_versions_whose_numbers_are_alike_are_told_apart(
    side: Side, pen: Pen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.adapters.registry.engine_id", lambda name, version: LARGEST_ENGINE_ID)
    first, second = await publish(side, "cardio", 1), await publish(side, "renal", 2)
    assert await side.says("cardio") == voice(pen, f"cardio@{first}")
    assert await side.says("renal") == voice(pen, f"renal@{second}")
    assert sorted(side.engine.adapters) == [1, LARGEST_ENGINE_ID]


async def test_a_lease_counts_while_it_is_held(side: Side) -> None:
    version = await publish(side, "cardio")
    async with side.registry.lease("cardio"), side.registry.lease(f"cardio@{version}"):
        assert side.described("cardio", version)["requests"] == 2
    assert side.described("cardio", version)["requests"] == 0
    assert side.loaded() == {f"cardio@{version}"}


async def test_a_lease_ends_with_a_request_that_fails(side: Side) -> None:
    version = await publish(side, "cardio")
    with pytest.raises(RuntimeError, match="mine"):
        async with side.registry.lease("cardio"):
            raise RuntimeError("mine")
    assert side.described("cardio", version)["requests"] == 0


async def test_a_promotion_leaves_running_requests_their_version_and_gives_new_ones_the_new(
    side: Side, pen: Pen
) -> None:
    old = await publish(side, "cardio", 1)
    async with side.registry.lease("cardio") as first, side.registry.lease("cardio"):
        new = await publish(side, "cardio", 2)
        assert side.described("cardio", old)["state"] == "retired"
        assert await side.says("cardio") == voice(pen, f"cardio@{new}")
        assert await side.generate(first.handle) == voice(pen, f"cardio@{old}")
    assert side.loaded() == {f"cardio@{new}"}
    assert side.described("cardio", old)["state"] == "unloaded"


async def test_only_the_last_lease_of_an_old_version_unloads_it(side: Side) -> None:
    old = await publish(side, "cardio", 1)
    async with contextlib.AsyncExitStack() as outer:
        await outer.enter_async_context(side.registry.lease("cardio"))
        async with side.registry.lease("cardio"):
            new = await publish(side, "cardio", 2)
        assert side.loaded() == {f"cardio@{old}", f"cardio@{new}"}
    assert side.loaded() == {f"cardio@{new}"}
    assert side.engine.unloads == [f"cardio@{old}"]


async def test_a_pinned_version_is_served_beside_the_current_one(side: Side, pen: Pen) -> None:
    old = await publish(side, "cardio", 1)
    new = await publish(side, "cardio", 2)
    assert await side.says(f"cardio@{old}") == voice(pen, f"cardio@{old}")
    assert await side.says("cardio") == voice(pen, f"cardio@{new}")


async def test_a_retired_version_that_is_pinned_again_is_not_loaded_twice(side: Side, pen: Pen) -> None:
    old = await publish(side, "cardio", 1)
    async with side.registry.lease("cardio"):
        await publish(side, "cardio", 2)
        assert await side.says(f"cardio@{old}") == voice(pen, f"cardio@{old}")
    assert side.engine.loads.count(f"cardio@{old}") == 1


async def test_a_request_that_comes_as_the_last_one_leaves_keeps_the_version_loaded(
    make_side: Callable[..., Side], pen: Pen
) -> None:
    side = make_side(most_loaded=2, adapter_s=0.01)
    await side.engine.start()
    old = await publish(side, "cardio", 1)
    for n in (2, 3):
        await publish(side, f"other{n}", n)
    assert f"cardio@{old}" not in side.loaded()
    new = side.volume.publish("cardio", 4)
    await side.registry.load("cardio", new)
    release = asyncio.Event()

    async def hold(model: str, going: asyncio.Event) -> list[int]:
        async with side.registry.lease(model) as lease:
            await going.wait()
            await asyncio.sleep(0.03)
            return await side.generate(lease.handle)

    async def leave() -> None:
        async with side.registry.lease("cardio"):
            await release.wait()

    first = asyncio.create_task(leave())
    await until(lambda: side.engine.loads.count(f"cardio@{old}") == 2)
    await side.registry.promote("cardio", new)  # while the old version is being loaded again
    await until(lambda: f"cardio@{old}" in side.loaded() and side.described("cardio", old)["state"] == "ready")
    release.set()
    second = asyncio.create_task(hold(f"cardio@{old}", release))
    await first
    assert await second == voice(pen, f"cardio@{old}")


async def test_a_rollback_is_a_promotion_of_the_version_before(side: Side, pen: Pen) -> None:
    old = await publish(side, "cardio", 1)
    new = await publish(side, "cardio", 2)
    await side.registry.promote("cardio", side.volume.rollback("cardio"))
    assert await side.says("cardio") == voice(pen, f"cardio@{old}")
    assert side.loaded() == {f"cardio@{old}"}
    assert side.described("cardio", new)["state"] == "unloaded"


async def test_two_names_of_one_content_are_two_adapters(side: Side, pen: Pen) -> None:
    one, other = await publish(side, "cardio", 1), await publish(side, "heart", 1)
    assert one == other
    assert await side.says("cardio") == voice(pen, f"cardio@{one}")
    assert await side.says("heart") == voice(pen, f"heart@{one}")
    await side.registry.withdraw("heart")
    assert await side.says("cardio") == voice(pen, f"cardio@{one}")


@pytest.mark.parametrize(
    "model",
    ["", "nobody", "cardio@", "cardio@0", "cardio@" + "0" * 16, "@", "../cardio", "cardio/../cardio", "cardio@../x"],
)
async def test_what_is_not_there_is_not_found_and_leaves_no_trace(side: Side, model: str) -> None:
    version = await publish(side, "cardio")
    before = side.registry.describe()
    with pytest.raises(ModelNotFound):
        async with side.registry.lease(model):
            pass
    assert side.registry.describe() == before
    assert side.loaded() == side.copied() == {f"cardio@{version}"}


async def test_a_refused_version_changes_nothing(side: Side, pen: Pen) -> None:
    good = await publish(side, "cardio", 1)
    bad = side.volume.publish("cardio", 2)
    side.engine.broken_adapters.add(f"cardio@{bad}")
    with pytest.raises(AdapterRefused):
        await side.registry.promote("cardio", bad)
    assert await side.says("cardio") == voice(pen, f"cardio@{good}")
    assert side.described("cardio", bad)["state"] == "refused"
    assert "add_lora" in str(side.described("cardio", bad)["reason"])
    assert side.loaded() == side.copied() == {f"cardio@{good}"}
    with pytest.raises(ModelNotFound, match="add_lora"):
        await side.says(f"cardio@{bad}")


async def test_an_adapter_that_changes_nothing_is_refused(side: Side, pen: Pen) -> None:
    side.engine.reply = voice(pen, None)
    version = side.volume.publish("cardio")
    with pytest.raises(AdapterRefused, match="changes nothing"):
        await side.registry.promote("cardio", version)
    assert side.loaded() == set()


async def test_an_adapter_whose_numbers_are_none_is_refused(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    before = side.engine._logprobs
    nan = {"sampled": float("nan")}

    def logprobs(request, ids):
        found = before(request, ids)
        return [type(p)(**nan, top=p.top) for p in found] if request.adapter else found

    monkeypatch.setattr(side.engine, "_logprobs", logprobs)
    version = side.volume.publish("cardio")
    with pytest.raises(AdapterRefused, match="not finite"):
        await side.registry.promote("cardio", version)
    assert side.loaded() == set()


async def test_when_all_places_are_taken_the_version_that_was_idle_longest_goes(side: Side, pen: Pen) -> None:
    versions = {name: await publish(side, name, n) for n, name in enumerate("abcd")}
    await side.says("a")
    versions["e"] = await publish(side, "e", 9)
    assert side.loaded() == {f"{name}@{versions[name]}" for name in "acde"}
    assert await side.says("b") == voice(pen, f"b@{versions['b']}")
    assert side.loaded() == {f"{name}@{versions[name]}" for name in "abde"}
    assert side.engine.most_adapters == 4


async def test_a_version_in_use_is_never_the_one_that_goes(side: Side, pen: Pen) -> None:
    for n, name in enumerate("abcd"):
        await publish(side, name, n)
    async with side.registry.lease("a") as lease:
        for n in range(6):
            await publish(side, f"more{n}", 10 + n)
        assert lease.handle.name in side.loaded()
        assert await side.generate(lease.handle) == voice(pen, lease.handle.name)
    assert side.engine.most_adapters == 4


async def test_when_every_place_is_leased_a_further_one_waits_its_turn(side: Side) -> None:
    async with contextlib.AsyncExitStack() as leases:
        for n, name in enumerate("abcd"):
            await publish(side, name, n)
            await leases.enter_async_context(side.registry.lease(name))
        version = side.volume.publish("e", 9)
        with pytest.raises(Overloaded):
            await side.registry.promote("e", version)
        assert side.described("e", version)["state"] != "refused", "nothing is wrong with it"
    await side.registry.promote("e", version)
    assert f"e@{version}" in side.loaded()


async def test_first_uses_of_many_adapters_at_once_never_fill_more_than_the_places(
    make_side: Callable[..., Side], pen: Pen
) -> None:
    side = make_side(adapter_s=0.002)
    await side.engine.start()
    versions = {f"n{n}": await publish(side, f"n{n}", n) for n in range(12)}
    side.engine.most_adapters = 0

    async def ask(name: str) -> bool:
        try:
            return await side.says(name) == voice(pen, f"{name}@{versions[name]}")
        except Overloaded:
            return False

    answered = await asyncio.gather(*(ask(name) for name in versions))
    assert sum(answered) >= 4
    assert side.engine.most_adapters <= 4


async def test_a_first_use_by_many_loads_once(make_side: Callable[..., Side], pen: Pen) -> None:
    side = make_side(adapter_s=0.01)
    await side.engine.start()
    old = await publish(side, "cardio", 1)
    await publish(side, "cardio", 2)
    before = len(side.engine.loads)
    found = await asyncio.gather(*(side.says(f"cardio@{old}") for _ in range(20)))
    assert found == [voice(pen, f"cardio@{old}")] * 20
    assert side.engine.loads[before:] == [f"cardio@{old}"]


async def test_a_client_that_leaves_during_the_first_use_harms_no_other(
    make_side: Callable[..., Side], pen: Pen
) -> None:
    side = make_side(adapter_s=0.02)
    await side.engine.start()
    old = await publish(side, "cardio", 1)
    await publish(side, "cardio", 2)
    for delay_s in (0.0, 0.001, 0.005, 0.015, 0.03):
        first = asyncio.create_task(side.says(f"cardio@{old}"))
        await asyncio.sleep(delay_s)
        others = [asyncio.create_task(side.says(f"cardio@{old}")) for _ in range(3)]
        await asyncio.sleep(0)
        first.cancel()
        assert await asyncio.gather(*others) == [voice(pen, f"cardio@{old}")] * 3
        await side.registry._unload(side.registry._versions[("cardio", old)])
    assert {path for path in side.copied() if path.startswith(".")} == set()


async def test_a_client_that_leaves_twice_over_still_frees_the_place(make_side: Callable[..., Side]) -> None:
    side = make_side(adapter_s=0.02)
    await side.engine.start()
    old = await publish(side, "cardio", 1)

    async def hold() -> None:
        async with side.registry.lease("cardio"):
            await asyncio.sleep(10)

    task = asyncio.create_task(hold())
    await asyncio.sleep(0.001)
    new = await publish(side, "cardio", 2)
    task.cancel()
    await asyncio.sleep(0.005)
    task.cancel()  # in the middle of unloading
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: side.loaded() == {f"cardio@{new}"})
    await until(lambda: side.copied() == {f"cardio@{new}"})
    assert side.described("cardio", old)["requests"] == 0


async def test_a_first_use_whose_client_leaves_is_finished_for_the_next(
    side: Side, pen: Pen, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await publish(side, "cardio", 1)
    await publish(side, "cardio", 2)
    fetch, fetched, may_end = side.cache.fetch, [], threading.Event()

    def slowly(*args):
        fetched.append(args[2])
        may_end.wait(5)
        return fetch(*args)

    monkeypatch.setattr(side.cache, "fetch", slowly)
    first = asyncio.create_task(side.says(f"cardio@{old}"))
    await until(lambda: bool(fetched))
    first.cancel()
    second = asyncio.create_task(side.says(f"cardio@{old}"))
    await asyncio.sleep(0.01)
    may_end.set()
    assert await second == voice(pen, f"cardio@{old}")
    assert fetched == [old], "two copied into one place at once"
    assert side.described("cardio", old)["requests"] == 0


async def test_an_unloading_that_fails_harms_nobody(side: Side, pen: Pen) -> None:
    await publish(side, "cardio", 1)
    side.engine.unload_errors = [AdapterRefused("no"), EngineDied("gone")]
    for seed in (2, 3, 4):
        version = await publish(side, "cardio", seed)
        assert await side.says("cardio") == voice(pen, f"cardio@{version}")


async def test_a_withdrawn_name_is_not_found_and_its_running_requests_end_in_peace(side: Side, pen: Pen) -> None:
    version = await publish(side, "cardio")
    async with side.registry.lease("cardio") as lease:
        await side.registry.withdraw("cardio")
        assert side.registry.names() == []
        with pytest.raises(ModelNotFound):
            await side.says("cardio")
        with pytest.raises(ModelNotFound):
            await side.says(f"cardio@{version}")
        assert await side.generate(lease.handle) == voice(pen, f"cardio@{version}")
    assert side.loaded() == side.copied() == set()


async def test_a_withdrawn_name_takes_its_pinned_versions_along(side: Side) -> None:
    old = await publish(side, "cardio", 1)
    await publish(side, "cardio", 2)
    await side.says(f"cardio@{old}")
    await side.registry.withdraw("cardio")
    assert side.loaded() == side.copied() == set()


async def test_a_restarted_engine_gets_its_adapters_again(side: Side, pen: Pen) -> None:
    versions = {name: await publish(side, name, n) for n, name in enumerate("abc")}
    side.engine.die()
    await side.engine.start()
    assert side.loaded() == set()
    side.engine.broken_adapters.add(f"b@{versions['b']}")
    await side.registry.restore()
    assert side.loaded() == {f"a@{versions['a']}", f"c@{versions['c']}"}
    assert await side.says("a") == voice(pen, f"a@{versions['a']}")
    assert side.described("b", versions["b"])["state"] == "refused"
    side.engine.broken_adapters.clear()
    assert await side.says("b") == voice(pen, f"b@{versions['b']}"), "tried again on its next use"


async def test_an_engine_that_dies_while_it_loads_refuses_nothing(make_side: Callable[..., Side], pen: Pen) -> None:
    side = make_side(adapter_s=0.02)
    await side.engine.start()
    version = side.volume.publish("cardio")
    loading = asyncio.create_task(side.registry.promote("cardio", version))
    await until(lambda: bool(side.engine.loads))
    side.engine.die()
    with pytest.raises(EngineDied):
        await loading
    assert side.described("cardio", version)["state"] != "refused"
    await side.engine.start()
    await side.registry.restore()
    await side.registry.promote("cardio", version)
    assert await side.says("cardio") == voice(pen, f"cardio@{version}")


async def test_a_source_that_is_deleted_after_loading_is_not_missed(side: Side, pen: Pen) -> None:
    version = await publish(side, "cardio")
    side.volume.vanish()
    assert await side.says("cardio") == voice(pen, f"cardio@{version}")
    side.engine.die()
    await side.engine.start()
    await side.registry.restore()
    assert await side.says("cardio") == voice(pen, f"cardio@{version}")


async def test_a_current_version_that_made_room_is_served_again_without_its_volume(side: Side, pen: Pen) -> None:
    versions = {name: await publish(side, name, n) for n, name in enumerate("abcde")}
    side.volume.vanish()
    for name, version in versions.items():
        assert await side.says(name) == voice(pen, f"{name}@{version}")
    assert side.engine.most_adapters == 4


async def test_a_pinned_version_that_is_gone_from_the_volume_says_so(side: Side) -> None:
    old = await publish(side, "cardio", 1)
    await publish(side, "cardio", 2)
    for path in side.volume.folder("cardio", old).iterdir():
        path.unlink()
    with pytest.raises(ModelNotFound, match=old):
        await side.says(f"cardio@{old}")
    with pytest.raises(AdapterError):
        await side.registry.load("cardio", old)
