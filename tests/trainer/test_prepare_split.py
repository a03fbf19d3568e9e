"""Whole groups to one side, the same for the same seed, and the same mix of lengths on each."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.contract.chat_format import Message
from services.trainer.dataset import DatasetError, PreparedRow
from services.trainer.prepare.lengths import draw_histogram, length_card
from services.trainer.prepare.split import split_rows

MESSAGES = (Message(role="user", content="问"), Message(role="assistant", content="答"))


def _rows(*groups: tuple[str, int], tokens: int = 100) -> list[PreparedRow]:
    """So many rows of each group."""
    names = [name for name, count in groups for _ in range(count)]
    return [
        PreparedRow(
            id=f"f:{number}", group=name, messages=MESSAGES, enable_thinking=False, tokens=tokens + number, supervised=1
        )
        for number, name in enumerate(names, 1)
    ]


GROUPS = st.lists(st.integers(1, 6), min_size=4, max_size=60)


@given(GROUPS, st.floats(0.02, 0.4), st.floats(0, 0.4), st.integers(0, 5))
@example([6, 1, 1, 1], 0.4, 0.25, 0)
def test_no_group_is_on_two_sides_and_no_row_is_lost(sizes: list[int], val: float, test: float, seed: int) -> None:
    rows = _rows(*((f"g{i}", size) for i, size in enumerate(sizes)))
    splits = split_rows(rows, {"val": val, "test": test}, seed)
    sides = {
        group: {s for s, held in splits.items() if group in {r.group for r in held}}
        for group in {r.group for r in rows}
    }
    assert all(len(found) == 1 for found in sides.values())
    assert Counter(r.id for held in splits.values() for r in held) == Counter(r.id for r in rows)
    assert all(splits.values())
    assert set(splits) == {"train", "val", *(["test"] if test > 0 else [])}


@given(st.integers(0, 20))
def test_a_tenth_is_a_tenth(seed: int) -> None:
    rows = _rows(*((f"g{i}", 1 + i % 3) for i in range(300)))
    splits = split_rows(rows, {"val": 0.1}, seed)
    assert len(splits["val"]) == pytest.approx(len(rows) / 10, abs=3)


def test_the_seed_decides_and_nothing_else() -> None:
    rows = _rows(*((f"g{i}", 1) for i in range(50)))
    held = [[r.id for r in split_rows(rows, {"val": 0.2}, seed)["val"]] for seed in (1, 1, 2)]
    assert held[0] == held[1] != held[2]


def test_short_and_long_rows_are_held_out_alike() -> None:
    rows = _rows(*((f"g{i}", 1) for i in range(400)))
    quarter = Counter((row.tokens - 101) // 100 for row in split_rows(rows, {"val": 0.1}, 3)["val"])
    assert quarter == {0: 10, 1: 10, 2: 10, 3: 10}


def test_rows_keep_their_order() -> None:
    rows = _rows(*((f"g{i}", 2) for i in range(30)))
    for held in split_rows(rows, {"val": 0.3}, 0).values():
        assert [r.tokens for r in held] == sorted(r.tokens for r in held)


def test_a_small_data_set_holds_out_at_least_one_group() -> None:
    splits = split_rows(_rows(("a", 3), ("b", 1)), {"val": 0.05}, 0)
    assert [r.group for r in splits["val"]] == ["b"]


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(DatasetError, match="1 groups of unlike questions and answers cannot fill train, val"):
        split_rows(_rows(("a", 9)), {"val": 0.1}, 0)
    assert list(split_rows(_rows(("a", 9)), {"val": 0.0}, 0)) == ["train"]


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=200))
def test_percentiles_and_histogram_tell_of_every_row(lengths: list[int]) -> None:
    card = length_card(lengths)
    ordered = sorted(lengths)
    assert (card.least, card.most) == (ordered[0], ordered[-1])
    assert sum(length <= card.p50 for length in lengths) >= len(lengths) / 2
    assert sum(length < card.p50 for length in lengths) < len(lengths) / 2
    assert sum(card.histogram.values()) == len(lengths)
    assert len(draw_histogram(card).splitlines()) <= 13


def test_a_histogram_shows_the_empty_bins_between() -> None:
    drawn = draw_histogram(length_card([5, 5, 55])).splitlines()
    assert drawn[0].split() == ["1", "-", "5", "2", "█" * 40]
    assert drawn[1].split() == ["6", "-", "10", "0"]
    assert drawn[-1].split() == ["51", "-", "55", "1", "█" * 20]
