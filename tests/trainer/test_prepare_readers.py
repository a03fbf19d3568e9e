"""Lines of data sets to conversations: every form that is read, and every one that is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.contract.chat_format import Message, ToolCall
from services.trainer.dataset import DatasetError
from services.trainer.prepare.readers import Read, read_files, read_questions

USER = {"role": "user", "content": "孩子发热怎么办？"}
REPLY = Message(role="assistant", content="多饮水。", reasoning_content="先看体温。")


def _read(folder: Path, *lines: Any, **options: Any) -> Read:
    path = folder / "a.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    return read_files([path], **options)


def _problems(read: Read) -> list[tuple[str, str]]:
    return [(problem.where, problem.kind) for problem in read.problems]


@pytest.mark.parametrize(
    ("line", "form"),
    [
        (
            {
                "Instruction": "i",
                "question": "孩子发热怎么办？",
                "think": "先看体温。",
                "answer": "多饮水。",
                "metrics": 1,
            },
            "question, think, answer",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "多饮水。", "reasoning_content": "先看体温。"}]},
            "messages, reasoning_content",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "多饮水。", "reasoning": "先看体温。"}]},
            "messages, reasoning_content",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "<think>\n先看体温。\n</think>\n\n多饮水。"}]},
            "messages, inline <think>",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "<think>先看体温。</think>多饮水。"}]},
            "messages, inline <think>",
        ),
        (
            {
                "messages": [
                    USER,
                    {
                        "role": "assistant",
                        "content": "<|ReasoningBegin|>先看体温。<|ReasoningEnd|>\n<|AnswerBegin|>多饮水。",
                    },
                ]
            },
            "messages, inline <think>",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "孩子发热怎么办？"}]},
                    {"role": "assistant", "content": "多饮水。", "reasoning_content": "先看体温。"},
                ]
            },
            "messages, reasoning_content",
        ),
    ],
)
def test_every_form_gives_the_same_conversation(line: dict[str, Any], form: str, tmp_path: Path) -> None:
    read = _read(tmp_path, line)
    assert read.problems == []
    assert read.records[0].messages == (Message(role="user", content="孩子发热怎么办？"), REPLY)
    assert read.records[0].form == form


def test_columns_that_are_not_used_are_counted(tmp_path: Path) -> None:
    row = {"question": "问", "think": "想", "answer": "答"}
    read = _read(tmp_path, {**row, "metrics": 1, "Instruction": "i"}, {**row, "metrics": 2})
    assert dict(read.extra) == {"metrics": 2, "Instruction": 1}


def test_an_empty_inline_thought_is_no_thought(tmp_path: Path) -> None:
    read = _read(tmp_path, {"messages": [USER, {"role": "assistant", "content": "<think>\n\n</think>\n\n多饮水。"}]})
    assert read.records[0].messages[1] == Message(role="assistant", content="多饮水。")


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        ('{"question": "问", "think": ', "json", "Expecting value"),
        ("null", "json", "not an object but NoneType"),
        ('"text"', "json", "not an object but str"),
        ('{"question": "\\ud800", "think": "想", "answer": "答"}', "character", "surrogate"),
        ({"text": "x"}, "form", "neither messages nor question, think, answer but text"),
        ({"question": "问", "think": "想"}, "empty", "answer is missing"),
        ({"question": " \n", "think": "想", "answer": "答"}, "empty", "question is blank"),
        ({"question": "问", "think": "", "answer": "答"}, "empty", "think is blank"),
        ({"question": 3, "think": "想", "answer": "答"}, "form", "question is not text but int"),
        ({"messages": []}, "form", "messages is not a list, or empty"),
        ({"messages": [USER, {"role": "doctor", "content": "x"}]}, "form", "message 2: role 'doctor'"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "empty", "message 2: the assistant's answer"),
        ({"messages": [USER, {"role": "assistant", "content": 5}]}, "form", "content is neither text nor text parts"),
        ({"messages": [USER]}, "turns", "the last message is not the assistant's"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "turns", "must answer a user or a tool, not nothing"),
        (
            {"messages": [USER, {"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y"}]},
            "turns",
            "message 3: the assistant must answer a user or a tool, not assistant",
        ),
        (
            {"messages": [USER, {"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}]},
            "turns",
            "message 2: a system turn must be the first",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "<think>a</think>b", "reasoning_content": "c"}]},
            "thinking",
            "has reasoning_content and <think> in the content too",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "form",
            "tool_calls are not",
        ),
        ({"messages": [USER, {"role": "assistant", "content": "x"}], "tools": {}}, "form", "tools is not a list"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(line: Any, kind: str, said: str, tmp_path: Path) -> None:
    good = {"question": "问", "think": "想", "answer": "答"}
    read = _read(tmp_path, good, "", line, good)
    assert [(problem.where, problem.kind) for problem in read.problems] == [("a.jsonl:3", kind)]
    assert said in read.problems[0].message
    assert [record.where for record in read.records] == ["a.jsonl:1", "a.jsonl:4"]


def test_every_blank_field_of_a_line_is_named(tmp_path: Path) -> None:
    assert _problems(_read(tmp_path, {"question": "", "think": "", "answer": ""})) == [("a.jsonl:1", "empty")] * 3


def test_an_empty_think_is_a_reply_without_thinking_when_asked_for(tmp_path: Path) -> None:
    read = _read(tmp_path, {"question": "问", "think": "", "answer": "答"}, allow_empty_think=True)
    assert read.records[0].messages[1].reasoning_content is None


def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"question": "问"}\n'.encode("gbk"))
    read = read_files([path])
    assert _problems(read) == [("a.jsonl:1", "json")]
    assert "not UTF-8" in read.problems[0].message


def test_a_byte_order_mark_and_dos_line_ends_do_no_harm(tmp_path: Path) -> None:
    line = json.dumps({"question": "问\r\n题 ", "think": "想", "answer": "答"}, ensure_ascii=False)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n")
    read = read_files([path])
    assert read.records[0].messages[0].content == "问\n题"
    assert read.changed == 1


def test_a_json_array_is_one_problem_and_not_one_for_each_line(tmp_path: Path) -> None:
    read = _read(tmp_path, "[", '{"question": "问"},', "]")
    assert [str(problem) for problem in read.problems] == [
        "a.jsonl:1: json: a JSON array: write one object a line instead"
    ]


def test_tools_and_calls_are_kept(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "dose", "arguments": '{"kg": 10}'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "reasoning_content": "要查。", "tool_calls": [call]},
        {"role": "tool", "content": "150 mg", "tool_call_id": "1"},
        {"role": "assistant", "content": "多饮水。", "reasoning_content": "先看体温。"},
    ]
    read = _read(tmp_path, {"messages": messages, "tools": [{"type": "function"}]})
    record = read.records[0]
    assert record.messages[1].tool_calls == (ToolCall(name="dose", arguments='{"kg": 10}'),)
    assert record.tools == ({"type": "function"},)
    assert record.messages[3] == REPLY


def test_files_of_one_name_are_refused_since_lines_are_told_by_it(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text("{}", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"two files are named a\.jsonl"):
        read_files([tmp_path / "x" / "a.jsonl", tmp_path / "y" / "a.jsonl"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cannot read .*none\.jsonl: No such file"):
        read_files([tmp_path / "none.jsonl"])


def test_questions_to_hold_out_need_nothing_but_a_question(tmp_path: Path) -> None:
    path = tmp_path / "scenarios.jsonl"
    path.write_text('{"question": "问"}\n' + json.dumps({"messages": [USER]}), encoding="utf-8")
    assert [record.messages[0].content for record in read_questions(path)] == ["问", USER["content"]]
    path.write_text('{"question": "问"}\n{}', encoding="utf-8")
    with pytest.raises(DatasetError, match=r"scenarios\.jsonl:2: no question to hold out"):
        read_questions(path)
