"""Conversations to rows: one for each assistant turn, as the served model would see it."""

from __future__ import annotations

import pytest

from services.contract.chat_format import END_THINK, THINK, ChatFormat, Message
from services.trainer.encode import IGNORED, encode
from services.trainer.prepare.readers import Record
from services.trainer.prepare.rows import answer_of, expand, make_rows, question_of

SYSTEM = "你是医疗助手。"
TWO_TURNS = Record(
    "f:1",
    "x",
    (
        Message(role="user", content="孩子发热怎么办？"),
        Message(role="assistant", content="多饮水。", reasoning_content="先看体温。"),
        Message(role="user", content="要吃药吗？"),
        Message(role="assistant", content="看体温。", reasoning_content="再看精神。"),
    ),
)


def test_each_assistant_turn_is_a_row_whose_history_has_bare_answers() -> None:
    rows = dict(expand(TWO_TURNS))
    assert list(rows) == ["f:1#1", "f:1#2"]
    assert rows["f:1#1"] == TWO_TURNS.messages[:2]
    assert [m.reasoning_content for m in rows["f:1#2"]] == [None, None, None, "再看精神。"]


def test_reasoning_between_a_call_and_its_result_stays_as_the_template_keeps_it() -> None:
    call = Message(role="assistant", content="我查一下。", reasoning_content="要查剂量。")
    record = Record(
        "f:1", "x", (*TWO_TURNS.messages[:3], call, Message(role="tool", content="150 mg"), TWO_TURNS.messages[3])
    )
    last = dict(expand(record))["f:1#3"]
    assert [m.reasoning_content for m in last if m.role == "assistant"] == [None, "要查剂量。", "再看精神。"]


def test_a_row_counts_what_encode_makes_of_it(chat_format: ChatFormat) -> None:
    rows, problems = make_rows(TWO_TURNS, "g", chat_format, SYSTEM, max_length=2000)
    assert problems == []
    for counted in rows:
        encoded = encode(counted.row.example(SYSTEM), chat_format)
        learned = [label for label in encoded.labels if label != IGNORED]
        lengths = counted.lengths
        assert (
            counted.row.tokens == lengths.row == len(encoded.ids) == lengths.prompt + lengths.thinking + lengths.answer
        )
        assert counted.row.supervised == len(learned)
        assert learned[0] == chat_format.control_ids[THINK]
        assert learned[lengths.thinking - 1] == chat_format.control_ids[END_THINK]


def test_a_reply_without_reasoning_learns_no_empty_thought(chat_format: ChatFormat) -> None:
    record = Record("f:1", "x", (Message(role="user", content="问"), Message(role="assistant", content="答")))
    (counted,), _ = make_rows(record, "g", chat_format, SYSTEM, max_length=2000)
    encoded = encode(counted.row.example(SYSTEM), chat_format)
    think = encoded.ids.index(chat_format.control_ids[THINK])
    assert not counted.row.enable_thinking
    assert counted.lengths.thinking == 0
    assert encoded.labels[think : think + 4] == [IGNORED] * 4


def test_a_turn_that_is_too_long_is_left_out_whole_and_its_shorter_ones_are_kept(chat_format: ChatFormat) -> None:
    rows, _ = make_rows(TWO_TURNS, "g", chat_format, SYSTEM, max_length=2000)
    limit = rows[0].row.tokens
    kept, problems = make_rows(TWO_TURNS, "g", chat_format, SYSTEM, max_length=limit)
    assert [counted.row for counted in kept] == [rows[0].row]
    assert [(problem.where, problem.kind) for problem in problems] == [("f:1#2", "too-long")]
    assert f"{rows[1].row.tokens} tokens" in problems[0].message


@pytest.mark.parametrize(
    ("asked", "question"),
    [
        (["孩子发热怎么办？", "要吃药吗？"], "孩子发热怎么办？"),
        (["你好", "孩子发热怎么办？"], "你好\n孩子发热怎么办？"),
        (["你好"], "你好"),
    ],
)
def test_a_greeting_does_not_make_two_conversations_the_same(asked: list[str], question: str) -> None:
    turns = [m for text in asked for m in (Message(role="user", content=text), Message(role="assistant", content="嗯"))]
    assert question_of(Record("f:1", "x", tuple(turns))) == question


def test_the_longest_answer_tells_a_conversation_and_a_phrase_does_not() -> None:
    long = "建议多饮水，注意休息，体温超过38.5℃时按体重用退热药，精神差请就医。"
    turns = (TWO_TURNS.messages[0], Message(role="assistant", content=long), *TWO_TURNS.messages[2:])
    assert answer_of(Record("f:1", "x", turns)) == long
    assert answer_of(TWO_TURNS) is None
