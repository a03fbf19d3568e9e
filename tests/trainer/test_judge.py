"""What the measurement counts as right."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from services.contract.chat_format import ChatFormat, Message, ToolCall
from services.trainer.demo.dialogues import Corpus
from services.trainer.demo.judge import UNKNOWN, Case, GroupResult, Judge, overlap, table
from tests.fakes import DEMO

CALL = ToolCall(name="lookup_drug", arguments='{"name": "布洛芬"}')


@pytest.fixture(scope="module")
def judge(corpus: Corpus, chat_format: ChatFormat) -> Judge:
    return Judge(corpus, chat_format, Tokenizer.from_file(str(DEMO / "tokenizer.json")))


def case(wanted: str = "x", thinks: bool = True, call: ToolCall | None = None) -> Case:
    return Case("g", "zh", [], thinks, wanted, call)


def reply(content: str, reasoning: str | None = "想", *calls: ToolCall) -> Message:
    return Message(role="assistant", content=content, reasoning_content=reasoning, tool_calls=calls)


def test_overlap_is_the_f1_of_bags() -> None:
    assert overlap("请立即就诊。", "请立即就诊", "zh") == 1
    assert overlap("请立即", "请立刻", "zh") == pytest.approx(0.5)
    assert overlap("Call a doctor", "call the doctor now", "en") == pytest.approx(4 / 7)
    assert overlap("", "答", "zh") == 0


def test_the_hand_written_replies_are_all_right(judge: Judge, corpus: Corpus, chat_format: ChatFormat) -> None:
    dialogues = [d for d in corpus.dialogues if d.lang == "zh"]
    cases = [case(d.id) for d in dialogues]
    replies = [chat_format.write_reply(reply(d.answer, d.think)) for d in dialogues]
    result = judge.group("g", "greedy", cases, replies)
    assert (result.exact_format, result.answer_overlap, result.right_dialogue, result.says_unknown) == (1, 1, 1, 0)


def test_not_knowing_is_right_where_it_is_wanted(judge: Judge, corpus: Corpus, chat_format: ChatFormat) -> None:
    replies = [chat_format.write_reply(reply(a.answer, a.think)) for a in corpus.unknown.zh]
    result = judge.group("g", "greedy", [case(UNKNOWN)] * len(replies), replies)
    assert (result.right_dialogue, result.says_unknown) == (1, 1)
    wrong = judge.group("g", "greedy", [case(corpus.dialogues[0].id)] * len(replies), replies)
    assert (wrong.right_dialogue, wrong.says_unknown) == (0, 1)


def test_form(judge: Judge, chat_format: ChatFormat) -> None:
    think, end_think, end = (chat_format.control_ids[t] for t in ("<think>", "</think>", "<|im_end|>"))
    encode = chat_format.encode_text
    good = chat_format.write_reply(reply("答", "想"))
    assert judge.is_exact(case(), good)
    assert not judge.is_exact(case(), good[:-1])
    assert not judge.is_exact(case(), [think, *encode("\n\n"), end_think, *encode("\n\n答"), end])
    assert not judge.is_exact(case(), [think, *encode("\n想\n"), end_think, *encode("\n\n"), end])
    assert not judge.is_exact(case(), [think, *encode("\n想\n"), end_think, *encode("答"), end])
    assert not judge.is_exact(case(), [think, *encode("\n想\n"), end_think, end_think, *encode("\n\n答"), end])
    assert judge.is_exact(case(thinks=False), chat_format.write_reply(reply("答"), with_reasoning=False))
    assert not judge.is_exact(case(thinks=False), good)


def test_tool_calls(judge: Judge, chat_format: ChatFormat) -> None:
    right = chat_format.write_reply(reply("", "想", CALL))
    wrong = chat_format.write_reply(reply("", "想", ToolCall(name="lookup_drug", arguments='{"name": "布"}')))
    broken = chat_format.write_reply(reply("", "想", ToolCall(name="lookup_drug", arguments="{")))
    result = judge.group("g", "greedy", [case(call=CALL)] * 3, [right, wrong, broken])
    assert result.right_tool_call == pytest.approx(1 / 3)
    assert result.exact_format == 1


def test_the_table_has_a_row_for_every_group() -> None:
    results = [GroupResult(group="a", decoding="greedy", cases=2, exact_format=0.5, right_dialogue=1)]
    assert table(results).splitlines()[2] == "| a | greedy | 2 | 50.0 |  | 100.0 |  |  |"
