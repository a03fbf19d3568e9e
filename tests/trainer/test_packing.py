"""The schedule of a run: what is trained on when, by which process."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from services.trainer.packing import Schedule, evaluation_packs, make_schedule, pack

LENGTHS = [random.Random(i).choice((40, 80, 120, 250, 400)) for i in range(200)]


def schedule(lengths: list[int] = LENGTHS, **changes: Any) -> Schedule:
    options: dict[str, Any] = {
        "batch_tokens": 500,
        "batch_rows": 4,
        "accumulation": 2,
        "processes": 1,
        "epochs": 1.0,
        "max_steps": None,
        "seed": 5,
    }
    return make_schedule(lengths, **(options | changes))


def rows_of(packs: Any) -> list[int]:
    return [row for found in packs for row in found]


@pytest.mark.parametrize("batch_tokens", [500, None])
@pytest.mark.parametrize("processes", [1, 3])
def test_every_row_comes_once_an_epoch(batch_tokens: int | None, processes: int) -> None:
    found = schedule(batch_tokens=batch_tokens, processes=processes, epochs=3)
    counts = Counter(rows_of(found.packs))
    assert counts == dict.fromkeys(range(len(LENGTHS)), 3)
    first = found.packs[: found.epoch_ends[0] * 2 * processes]
    assert sorted(rows_of(first)) == list(range(len(LENGTHS)))


def test_no_pack_is_longer_than_it_may_be_and_little_room_is_left() -> None:
    packs = pack(LENGTHS, range(len(LENGTHS)), 500)
    assert max(sum(LENGTHS[row] for row in found) for found in packs) <= 500
    assert sum(LENGTHS) / (500 * len(packs)) > 0.95


def test_room_is_used_though_few_packs_are_open_at_one_time() -> None:
    rng = random.Random(3)
    lengths = [min(2048, max(60, int(rng.lognormvariate(6.6, 0.5)))) for _ in range(5000)]
    order = rng.sample(range(5000), 5000)
    packs = pack(lengths, order, 8192)
    assert sum(lengths) / (8192 * len(packs)) > 0.97


def test_processes_share_each_step_of_one_process_with_more_accumulation() -> None:
    """The same global batches, so that the number of GPUs does not change what is learned."""
    one = schedule(accumulation=6, epochs=2)
    three = schedule(accumulation=2, processes=3, epochs=2)
    assert one.steps == three.steps
    shares = [three.of_process(process) for process in range(3)]
    assert len({len(share) for share in shares}) == 1
    for step in range(one.steps):
        together = [p for share in shares for p in share[step * 2 : step * 2 + 2]]
        assert sorted(together) == sorted(one.packs[step * 6 : step * 6 + 6])


def test_steps_of_an_epoch_have_nearly_as_many_packs() -> None:
    found = schedule(accumulation=8)
    filled = [sum(1 for p in found.packs[i : i + 8] if p) for i in range(0, len(found.packs), 8)]
    assert max(filled) - min(filled) <= 1


def test_the_seed_decides_the_order_and_epochs_differ() -> None:
    assert schedule(epochs=2) == schedule(epochs=2)
    assert schedule().packs != schedule(seed=6).packs
    two = schedule(epochs=2)
    end = two.epoch_ends[0] * 2
    assert two.packs[:end] != two.packs[end:]
    assert {frozenset(p) for p in two.packs[:end]} != {frozenset(p) for p in two.packs[end:]}


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    short, long = schedule(epochs=1), schedule(epochs=3)
    assert long.packs[: len(short.packs)] == short.packs


def test_a_fraction_of_an_epoch_is_that_share_of_its_packs() -> None:
    whole, half = schedule(epochs=1), schedule(epochs=0.5)
    assert half.steps == pytest.approx(whole.steps / 2, abs=1)
    assert 0.4 < len(rows_of(half.packs)) / len(LENGTHS) < 0.6


def test_max_steps_ends_a_run_whatever_the_epochs() -> None:
    found = schedule(epochs=50, max_steps=7)
    assert found.steps == 7
    assert found.epoch_ends[-1] == 7
    assert schedule(epochs=1, max_steps=10**6).steps == schedule(epochs=1).steps


def test_epochs_are_counted_by_steps() -> None:
    found = schedule(epochs=2)
    first, second = found.epoch_ends
    assert found.epoch_at(0) == 0.0
    assert found.epoch_at(first) == 1.0
    assert found.epoch_at(second) == 2.0
    assert 0.0 < found.epoch_at(1) < found.epoch_at(2) < 1.0
    cut = schedule(epochs=2, max_steps=first + 1)
    assert [cut.epoch_at(step) for step in (1, first + 1)] == [found.epoch_at(step) for step in (1, first + 1)]
    assert schedule(epochs=1.5).epoch_at(schedule(epochs=1.5).steps) == 1.5


def test_a_single_row_is_a_run() -> None:
    found = schedule([30], accumulation=4, processes=2)
    assert (found.steps, rows_of(found.packs)) == (1, [0])
    assert found.packs[-1] == (0,)  # empty micro-batches come first, so that the last one has something to learn


@pytest.mark.parametrize(("lengths", "reason"), [([], "no rows"), ([600], "600 tokens")])
def test_what_cannot_be_packed_is_refused(lengths: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        schedule(lengths)


@pytest.mark.parametrize("processes", [1, 2, 7])
def test_evaluation_has_as_many_packs_for_each_process_and_every_row_once(processes: int) -> None:
    packs = evaluation_packs(LENGTHS, 500, 4, processes)
    assert len(packs) % processes == 0
    assert sorted(rows_of(packs)) == list(range(len(LENGTHS)))
