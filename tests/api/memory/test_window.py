"""Whole turns, the newest that fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.memory.window import choose_window

IDS = st.lists(st.integers(0, 9), max_size=6)


@given(IDS, st.lists(IDS, max_size=8), IDS, st.integers(0, 60))
def test_the_newest_turns_that_fit_are_kept(
    system: list[int], turns: list[list[int]], new: list[int], budget: int
) -> None:
    window = choose_window(system, turns, new, budget)
    kept = turns[window.dropped :]
    assert window.kept + window.dropped == len(turns)
    assert window.ids == system + [i for turn in kept for i in turn] + new
    assert window.fits == (len(window.ids) <= budget)
    assert window.fits or not kept
    if window.dropped:  # one more would not fit
        assert len(window.ids) + len(turns[window.dropped - 1]) > budget


@given(st.lists(st.tuples(IDS, st.booleans()), min_size=1, max_size=8), st.booleans(), st.integers(0, 60))
def test_what_belongs_together_stays_together(turns: list[tuple[list[int], bool]], last: bool, budget: int) -> None:
    glued = [g for _, g in turns] + [last]
    window = choose_window([1], [ids for ids, _ in turns], [2], budget, glued)
    assert not glued[window.dropped] or window.dropped == 0
    assert window.fits or all(glued[max(1, window.dropped + 1) :])


def test_a_tools_result_keeps_its_call() -> None:
    assert choose_window([], [[1, 1], [2, 2]], [3], 3, [False, False, True]).ids == [2, 2, 3]
    over = choose_window([], [[1, 1], [2, 2]], [3], 2, [False, False, True])
    assert (over.ids, over.fits) == ([2, 2, 3], False)
    both = choose_window([], [[1, 1], [2, 2]], [3], 4, [False, True, False])
    assert (both.ids, both.dropped) == ([3], 2)
    with pytest.raises(ValueError, match="glued"):
        choose_window([], [[1]], [2], 9, [True])
