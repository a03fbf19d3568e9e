"""What is new in a request that may bring the history along."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.memory.errors import HistoryConflict, NothingNew
from services.api.memory.merge import merge
from services.api.memory.records import PastTurn
from services.contract.chat_format import Message, ToolCall
from tests.api.memory.turns import past, said, user

TURNS = [past("q1", "a1"), past("q2", "a2"), past("q3", "a3")]
FLAT = [m for turn in TURNS for m in (*turn.messages, turn.reply)]
SYSTEM = Message(role="system", content="谨慎")


@pytest.mark.parametrize("kept", range(7))
def test_any_tail_of_the_history_may_come_along(kept: int) -> None:
    tail = FLAT[len(FLAT) - kept :]
    assert merge(TURNS, [*tail, user("q4")]).messages == (user("q4"),)
    assert merge(TURNS, [SYSTEM, *tail, user("q4"), user("q5")], "谨慎").messages == (user("q4"), user("q5"))


def test_a_new_session_takes_all_that_is_sent() -> None:
    given_ = [SYSTEM, user("x"), said("y"), user("z")]
    merged = merge([], given_)
    assert (merged.messages, merged.system_prompt) == (tuple(given_[1:]), "谨慎")


def test_what_follows_the_stored_turns_is_new_even_an_answer_that_we_never_stored() -> None:
    """A turn whose client left was aborted here, and the client may have kept what it saw of it."""
    extra = [user("q4"), said("half an ans"), user("q5")]
    assert merge(TURNS, [*FLAT, *extra]).messages == tuple(extra)


def test_white_space_and_unicode_forms_do_not_matter() -> None:
    turns = [past("caf\u00e9  q", "a\n\nb ")]
    assert merge(turns, [user(" cafe\u0301 q\n"), said("a b"), user("n")]).messages == (user("n"),)


@pytest.mark.parametrize(
    "sent",
    [
        [user("q1"), said("another answer"), user("n")],
        [user("q1"), said("a1"), user("n")],  # older than what is stored: a fork
        [user("q3"), said("a3"), user("q3"), said("a2"), user("n")][2:],
        [user("other"), said("a3"), user("n")],
        [said("a2"), user("n")],
    ],
)
def test_a_history_that_contradicts_is_refused(sent: list[Message]) -> None:
    with pytest.raises(HistoryConflict) as caught:
        merge(TURNS, sent)
    assert not any(text in str(caught.value) for text in ("another answer", "a3", "q1"))


def test_another_system_prompt_is_refused() -> None:
    with pytest.raises(HistoryConflict):
        merge(TURNS, [Message(role="system", content="be bold"), user("n")], "谨慎")
    with pytest.raises(HistoryConflict):
        merge(TURNS, [SYSTEM, user("n")], None)
    assert merge(TURNS, [user("n")], "谨慎").system_prompt == "谨慎"
    assert merge(TURNS, [Message(role="system", content=" "), user("n")], "谨慎").system_prompt == "谨慎"
    assert merge([], [SYSTEM, user("n")], "谨慎").system_prompt == "谨慎"


@pytest.mark.parametrize("sent", [[], [SYSTEM], FLAT, [user("q4"), said("x")]])
def test_something_must_be_new(sent: list[Message]) -> None:
    with pytest.raises((NothingNew, HistoryConflict)):
        merge(TURNS, sent, "谨慎")


def test_a_blocked_answer_is_known_by_its_end() -> None:
    """A stream had shown sentences before the answer was replaced."""
    turns = [past("q", "请就医。", "blocked")]
    assert merge(turns, [user("q"), said("先说一句。请就医。"), user("n")]).messages == (user("n"),)
    with pytest.raises(HistoryConflict):
        merge([past("q", "请就医。")], [user("q"), said("先说一句。请就医。"), user("n")])


def test_tool_results_go_on_from_their_call() -> None:
    turns = [past("dose?", "", calls=(ToolCall(name="f", arguments='{"a": 1, "b": 2}'),))]
    result = Message(role="tool", content="5 mg")
    sent_call = Message(role="assistant", tool_calls=(ToolCall(name="f", arguments='{"b":2,"a":1}'),))
    assert merge(turns, [user("dose?"), sent_call, result]).messages == (result,)
    assert merge(turns, [result]).messages == (result,)
    with pytest.raises(HistoryConflict):
        merge(TURNS, [result])
    with pytest.raises(HistoryConflict):
        merge([], [result])
    with pytest.raises(HistoryConflict):
        merge(turns, [user("dose?"), said(""), result])


def test_thoughts_are_left_out() -> None:
    sent = [*FLAT[:-1], Message(role="assistant", content="a3", reasoning_content="why"), user("n")]
    assert merge(TURNS, sent).messages == (user("n"),)
    brought = Message(role="assistant", content="x", reasoning_content="why")
    assert merge([], [user("q"), brought, user("n")]).messages[1].reasoning_content is None


TEXTS = st.sampled_from(["a", "b", "好"])


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=6), st.integers(0, 12), st.lists(TEXTS, min_size=1, max_size=2))
def test_repeated_texts_are_no_trap(pairs: list[tuple[str, str]], kept: int, new: list[str]) -> None:
    turns: list[PastTurn] = [past(q, a) for q, a in pairs]
    flat = [m for turn in turns for m in (*turn.messages, turn.reply)]
    tail = flat[max(0, len(flat) - kept) :]
    assert merge(turns, [*tail, *map(user, new)]).messages == tuple(map(user, new))
