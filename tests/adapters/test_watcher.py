"""What one look at the volume leads to; and that no volume, however broken, ends the looking."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from services.api.adapters import watcher as watching
from services.api.adapters.watcher import GONE_AFTER_SCANS, AdapterWatcher
from services.contract.adapter_manifest import CONFIG, CURRENT, WEIGHTS
from tests.adapters.conftest import Side, voice
from tests.adapters.volumes import overwrite, write_manifest_again
from tests.fakes import Pen
from tests.running import until


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`clock(30)`: half a minute has passed for the watcher."""
    ahead = [0.0]
    monotonic = watching.time.monotonic

    class Time:
        monotonic = staticmethod(lambda: monotonic() + ahead[0])

    monkeypatch.setattr(watching, "time", Time)

    def pass_by(seconds: float) -> None:
        ahead[0] += seconds

    return pass_by


async def scan(side: Side, times: int = 1) -> None:
    for _ in range(times):
        await side.watcher.scan()


async def test_what_is_published_is_served_after_one_look(side: Side, pen: Pen) -> None:
    first = side.volume.publish("cardio", 1)
    await scan(side)
    assert await side.says("cardio") == voice(pen, f"cardio@{first}")
    second = side.volume.publish("cardio", 2)
    await scan(side)
    assert await side.says("cardio") == voice(pen, f"cardio@{second}")
    side.volume.rollback("cardio")
    await scan(side)
    assert await side.says("cardio") == voice(pen, f"cardio@{first}")


async def test_a_look_that_finds_nothing_new_does_nothing(side: Side) -> None:
    side.volume.publish("cardio")
    await scan(side)
    done = (list(side.engine.loads), len(side.engine.requests), list(side.changes))
    await scan(side, 5)
    assert (side.engine.loads, len(side.engine.requests), side.changes) == done


async def test_a_young_version_that_is_half_copied_is_served_once_it_is_whole(side: Side, pen: Pen, clock) -> None:
    whole: list[bytes] = []

    def half(folder: Path) -> None:
        whole.append((folder / WEIGHTS).read_bytes())
        overwrite(folder / WEIGHTS, whole[0][:100])

    version = side.volume.place_raw("cardio", half)
    await scan(side)
    assert side.described("cardio", version)["state"] == "refused"
    assert "not copied whole" in str(side.described("cardio", version)["reason"])
    overwrite(side.volume.folder("cardio", version) / WEIGHTS, whole[0])
    await scan(side)
    assert side.registry.names() == [], "tried again at once: a slow copy would be read a hundred times"
    clock(1.1)
    await scan(side)
    assert await side.says("cardio") == voice(pen, f"cardio@{version}")
    assert side.described("cardio", version)["reason"] is None


async def test_an_old_version_that_is_broken_is_tried_seldom(
    side: Side, clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    side.volume.place_raw("cardio", lambda folder: (folder / CONFIG).unlink())
    fetch, tries = side.cache.fetch, []
    monkeypatch.setattr(side.cache, "fetch", lambda *args: (tries.append(args), fetch(*args)))
    for _ in range(40):
        await scan(side)
        clock(1.01)
    assert 15 <= len(tries) <= 22
    tries.clear()
    for _ in range(120):
        await scan(side)
        clock(1.01)
    assert len(tries) == 2


async def test_what_the_engine_refuses_is_not_tried_again(side: Side, clock, pen: Pen, caplog) -> None:
    caplog.set_level(logging.INFO)
    good = side.volume.publish("cardio", 1)
    await scan(side)
    bad = side.volume.publish("cardio", 2)
    side.engine.broken_adapters.add(f"cardio@{bad}")
    for _ in range(200):
        await scan(side)
        clock(1.01)
    assert side.engine.loads.count(f"cardio@{bad}") == 1
    assert [r.getMessage() for r in caplog.records].count("adapter refused") == 1
    assert side.changes.count(("refused", "cardio")) == 1
    assert await side.says("cardio") == voice(pen, f"cardio@{good}")


async def test_pointing_to_a_refused_version_again_tries_it_again(side: Side, pen: Pen, clock) -> None:
    good = side.volume.publish("cardio", 1)
    await scan(side)
    bad = side.volume.publish("cardio", 2)
    side.engine.broken_adapters.add(f"cardio@{bad}")
    await scan(side)
    side.volume.point("cardio", good)
    await scan(side)
    side.engine.broken_adapters.clear()
    side.volume.point("cardio", bad)
    await scan(side)
    assert await side.says("cardio") == voice(pen, f"cardio@{bad}")


async def test_a_name_without_current_is_withdrawn_after_some_looks(side: Side, pen: Pen) -> None:
    version = side.volume.publish("cardio")
    side.volume.publish("neuro")
    await scan(side)
    side.volume.remove("cardio")
    await scan(side)
    assert await side.says("cardio") == voice(pen, f"cardio@{version}"), "a listing may miss a name for a moment"
    await scan(side, GONE_AFTER_SCANS - 1)
    assert side.registry.names() == ["neuro"]
    side.volume.point("cardio", version)
    await scan(side)
    assert await side.says("cardio") == voice(pen, f"cardio@{version}")


async def test_the_last_name_can_be_withdrawn_too(side: Side) -> None:
    side.volume.publish("cardio")
    await scan(side)
    side.volume.remove("cardio")
    await scan(side, GONE_AFTER_SCANS)
    assert side.registry.names() == []


def vanished(side: Side) -> Callable[[], None]:
    side.volume.vanish()
    return side.volume.come_back


def unmounted(side: Side) -> Callable[[], None]:
    """What an unmounted volume leaves: the empty folder that it was mounted on."""
    side.volume.vanish()
    side.volume.root.mkdir()

    def mount() -> None:
        side.volume.root.rmdir()
        side.volume.come_back()

    return mount


@pytest.mark.parametrize("leave", [vanished, unmounted])
async def test_a_volume_that_is_gone_changes_nothing_until_it_is_back(side: Side, pen: Pen, caplog, leave) -> None:
    caplog.set_level(logging.INFO)
    states: list[bool] = []
    side.watcher._on_volume = states.append
    first = side.volume.publish("cardio", 1)
    await scan(side, 2)
    come_back = leave(side)
    await scan(side, 10)
    assert await side.says("cardio") == voice(pen, f"cardio@{first}")
    come_back()
    second = side.volume.publish("cardio", 2)
    await scan(side)
    assert await side.says("cardio") == voice(pen, f"cardio@{second}")
    assert states == [True, False, True]
    messages = [r.getMessage() for r in caplog.records]
    assert sum("does not answer" in m for m in messages) == 1, "one line for an outage, however long"


async def test_an_empty_volume_at_the_start_is_a_volume(side: Side) -> None:
    states: list[bool] = []
    side.watcher._on_volume = states.append
    await scan(side, 5)
    assert states == [True]


async def test_a_volume_that_hangs_costs_one_thread_and_no_more(
    side: Side, pen: Pen, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = side.volume.publish("cardio")
    await scan(side)
    read, may_end, reading = watching._read_volume, threading.Event(), []

    def hang(volume: Path) -> object:
        reading.append(volume)
        may_end.wait(10)
        return read(volume)

    monkeypatch.setattr(watching, "_read_volume", hang)
    side.watcher._timeout_s = 0.005
    await scan(side, 50)
    assert len(reading) == 1, "a volume that hangs for a minute would hold every thread that the process has"
    assert await side.says("cardio") == voice(pen, f"cardio@{version}")
    newer = side.volume.publish("cardio", 2)
    monkeypatch.setattr(watching, "_read_volume", read)
    may_end.set()
    side.watcher._timeout_s = 1.0
    await scan(side, 2)
    assert await side.says("cardio") == voice(pen, f"cardio@{newer}")


@pytest.mark.parametrize("content", ["", "0" * 15, "../../etc", "0" * 4096, "\x00" * 16, b"\xff\xfe" * 8])
async def test_a_damaged_current_leaves_what_is_served(side: Side, pen: Pen, content: str | bytes) -> None:
    version = side.volume.publish("cardio")
    await scan(side)
    overwrite(side.volume.root / "cardio" / CURRENT, content)
    await scan(side, 5)
    assert await side.says("cardio") == voice(pen, f"cardio@{version}")


async def test_strange_things_on_a_volume_are_passed_over(side: Side, tmp_path: Path) -> None:
    good = side.volume.publish("cardio")
    root = side.volume.root
    for name in ("..hidden", "-x", "名称", "a" * 65, "with space", "lost+found"):
        (root / name).mkdir()
        overwrite(root / name / CURRENT, f"{good}\n")
    (root / "a-file").write_text("x")
    (root / "looped").symlink_to(root / "looped")
    (root / "empty").mkdir()
    (root / "piped").mkdir()
    os.mkfifo(root / "piped" / CURRENT)
    await scan(side)
    assert side.registry.names() == ["cardio"]


async def test_a_name_that_is_a_link_out_of_the_volume_is_not_served(side: Side, tmp_path: Path) -> None:
    version = side.volume.publish("cardio")
    os.rename(side.volume.root / "cardio", tmp_path / "cardio")
    (side.volume.root / "cardio").symlink_to(tmp_path / "cardio")
    await scan(side)
    assert side.registry.names() == []
    assert "symbolic link" in str(side.described("cardio", version)["reason"])


def unforeseen(folder: Path) -> None:
    config = (folder / CONFIG).read_text().replace('"lora_alpha": 16', f'"lora_alpha": 1{"0" * 400}')
    overwrite(folder / CONFIG, config)
    write_manifest_again(folder)


async def test_one_adapter_that_breaks_the_reader_keeps_no_other_from_being_served(side: Side, clock, caplog) -> None:
    version = side.volume.place_raw("aaa", unforeseen)
    side.volume.publish("zzz")
    await scan(side)
    assert side.registry.names() == ["zzz"]
    assert side.described("aaa", version)["state"] == "refused"
    assert side.described("aaa", version)["reason"]


@pytest.mark.parametrize("error", [RuntimeError("?"), MemoryError(), OSError(5, "I/O error"), KeyError("x")])
async def test_no_exception_ends_the_watching(
    side: Side, pen: Pen, monkeypatch: pytest.MonkeyPatch, error: Exception, caplog
) -> None:
    fetch, raised = side.cache.fetch, []

    def once(*args):
        if not raised:
            raised.append(error)
            raise error
        return fetch(*args)

    monkeypatch.setattr(side.cache, "fetch", once)
    monkeypatch.setattr(watching, "RETRY_S", 0.02)
    version = side.volume.publish("cardio")
    task = asyncio.create_task(side.watcher.run())
    await until(lambda: side.registry.names() == ["cardio"])
    assert await side.says("cardio") == voice(pen, f"cardio@{version}")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_it_does_not_look_while_the_engine_is_away_and_goes_on_afterwards(side: Side, pen: Pen) -> None:
    ready = [False]
    watcher = AdapterWatcher(side.volume.root, side.registry, 0.005, is_ready=lambda: ready[0])
    version = side.volume.publish("cardio")
    task = asyncio.create_task(watcher.run())
    await asyncio.sleep(0.03)
    assert side.engine.loads == []
    ready[0] = True
    await until(lambda: side.registry.names() == ["cardio"])
    assert await side.says("cardio") == voice(pen, f"cardio@{version}")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_engine_that_dies_under_a_load_is_not_the_adapters_fault(side: Side, pen: Pen) -> None:
    version = side.volume.publish("cardio")
    side.engine.die()
    await scan(side)
    assert side.described("cardio", version)["state"] != "refused"
    await side.engine.start()
    await scan(side)
    assert await side.says("cardio") == voice(pen, f"cardio@{version}")


async def test_many_names_are_known_at_once_and_loaded_when_they_are_used(side: Side, pen: Pen) -> None:
    """A volume of 300 names must not be read through before the last of them can be asked for."""
    versions = {f"name{n:03}": side.volume.publish(f"name{n:03}", n) for n in range(40)}
    await scan(side)
    assert side.registry.names() == sorted(versions)
    assert len(side.engine.loads) <= 4, "each load would push out one that was loaded a moment ago"
    assert len(side.copied()) <= 4
    for name in ("name039", "name000", "name020"):
        assert await side.says(name) == voice(pen, f"{name}@{versions[name]}")
    assert side.engine.most_adapters <= 4


async def test_a_name_that_was_only_announced_and_is_broken_says_why_when_it_is_used(side: Side) -> None:
    for n in range(6):
        side.volume.publish(f"a{n}", n)
    version = side.volume.place_raw("broken", lambda folder: (folder / CONFIG).unlink())
    await scan(side)
    with pytest.raises(Exception, match=CONFIG):
        await side.says("broken")
    assert side.described("broken", version)["state"] == "refused"
