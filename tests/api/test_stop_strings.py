"""Stop strings: nothing of a match is shown, wherever deltas cut it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.thinking.stop_strings import StopStrings

SMALL = st.text("ab。\n", max_size=24)
STOPS = st.lists(st.text("ab。\n", min_size=1, max_size=4), min_size=1, max_size=4)


def watch(text: str, cuts: list[int], stops: list[str], include: bool) -> tuple[str, str | None]:
    watcher = StopStrings(stops, include)
    borders = [0, *sorted({c % (len(text) + 1) for c in cuts}), len(text)]
    shown = "".join(watcher.feed(text[a:b]) for a, b in itertools.pairwise(borders))
    return shown + watcher.end(), watcher.matched


def first_match(text: str, stops: list[str]) -> tuple[str, str] | None:
    """By the definition: read character by character until some stop string ends there; the longest of them."""
    for end in range(1, len(text) + 1):
        ending = [s for s in stops if text[:end].endswith(s)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return None


@given(text=SMALL, stops=STOPS, cuts=st.lists(st.integers(0, 30)), include=st.booleans())
def test_any_chunking_finds_the_match_that_is_complete_first(text, stops, cuts, include) -> None:
    expected = first_match(text, stops)
    shown, matched = watch(text, cuts, stops, include)
    if expected is None:
        assert (shown, matched) == (text, None)
    else:
        before, stop = expected
        assert (shown, matched) == (before + stop if include else before, stop)


@given(text=SMALL, stops=STOPS, cuts=st.lists(st.integers(0, 30)))
def test_nothing_of_a_match_is_shown(text, stops, cuts) -> None:
    shown, _ = watch(text, cuts, stops, include=False)
    assert not any(stop in shown for stop in stops)


def test_only_a_tail_that_may_become_a_match_is_held_back() -> None:
    watcher = StopStrings(["结束了"])
    assert watcher.feed("快要结") == "快要"
    assert watcher.feed("论是") == "结论是"


def test_what_was_held_back_comes_when_the_answer_ends() -> None:
    watcher = StopStrings(["结束"])
    assert watcher.feed("总结") == "总"
    assert watcher.end() == "结"
    assert watcher.end() == ""


def test_of_overlapping_strings_the_one_that_is_complete_first_wins() -> None:
    assert watch("xabcd", [], ["bcd", "ab"], include=False) == ("x", "ab")


def test_of_strings_that_end_together_the_longest_wins() -> None:
    assert watch("xabc", [], ["bc", "abc"], include=False) == ("x", "abc")


def test_after_a_match_nothing_more_comes() -> None:
    watcher = StopStrings(["。"])
    assert watcher.feed("一。二") == "一"
    assert watcher.feed("三") == ""
    assert watcher.end() == ""


@pytest.mark.parametrize("stops", [[], [""]])
def test_no_stop_string_holds_nothing_back(stops) -> None:
    assert StopStrings(stops).feed("任何文字") == "任何文字"
