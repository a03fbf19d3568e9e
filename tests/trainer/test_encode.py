"""Labels supervise the reply, all of it and nothing else."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contract.chat_format import ChatFormat, Message, ToolCall
from services.trainer.encode import IGNORED, EncodeError, Example, Row, encode
from tests.fakes import demo_chat_format

FORMAT = demo_chat_format()
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "lookup_drug", "parameters": {}}}

texts = st.text(st.sampled_from("头痛怎么办 ab.\n<|im_end|></think>，"), min_size=1, max_size=30).map(
    lambda text: unicodedata.normalize("NFC", text)
)
reasonings = texts.map(lambda text: f"想{text}想")
answers = texts.map(lambda text: f"答{text}")
histories = st.lists(
    st.builds(Message, role=st.sampled_from(["user", "assistant"]), content=texts), max_size=4
).map(tuple)  # fmt: skip


def supervised(row: Row) -> list[int]:
    return [label for label in row.labels if label != IGNORED]


def conversation(history: tuple[Message, ...], question: str, reply: Message) -> tuple[Message, ...]:
    return (*history, Message(role="user", content=question), reply)


@given(history=histories, question=texts, reasoning=reasonings, answer=answers, thinks=st.booleans())
def test_exactly_the_reply_is_supervised(
    history: tuple[Message, ...], question: str, reasoning: str, answer: str, thinks: bool
) -> None:
    reply = Message(role="assistant", content=answer, reasoning_content=reasoning)
    messages = conversation(history, question, reply)
    row = encode(Example(messages, enable_thinking=thinks), FORMAT)
    written = FORMAT.write_reply(reply, with_reasoning=thinks)
    assert supervised(row) == written
    assert row.labels[-len(written) :] == row.ids[-len(written) :] == written
    assert row.ids == FORMAT.write_prompt(messages[:-1], (), thinks) + written
    assert len(row.ids) == len(row.labels)
    assert row.ids[-1] == FORMAT.control_ids["<|im_end|>"]


@given(question=texts, reasoning=reasonings, answer=answers)
def test_the_row_is_the_conversation_without_its_last_newline(question: str, reasoning: str, answer: str) -> None:
    messages = conversation((), question, Message(role="assistant", content=answer, reasoning_content=reasoning))
    row = encode(Example(messages), FORMAT)
    assert row.ids + FORMAT.encode_text("\n") == FORMAT.write(messages)


@given(question=texts, reasoning=reasonings, answer=answers)
def test_a_thought_cut_off_is_shown_but_not_learned(question: str, reasoning: str, answer: str) -> None:
    reply = Message(role="assistant", content=answer, reasoning_content=reasoning)
    row = encode(Example(conversation((), question, reply), supervise="answer"), FORMAT)
    assert supervised(row) == FORMAT.write_reply(reply, with_reasoning=False)
    assert FORMAT.read_reply(row.ids[row.ids.index(FORMAT.control_ids["<think>"]) :]) == reply


def test_a_tool_call_is_supervised() -> None:
    call = ToolCall(name="lookup_drug", arguments='{"name": "布洛芬"}')
    reply = Message(role="assistant", reasoning_content="要查", tool_calls=(call,))
    row = encode(Example(conversation((), "查布洛芬", reply), (TOOL,)), FORMAT)
    assert FORMAT.read_reply(supervised(row)) == reply


def test_only_the_last_reply_is_supervised() -> None:
    earlier = Message(role="assistant", content="早先", reasoning_content="旧想法")
    messages = (Message(role="user", content="一"), earlier, Message(role="user", content="二"))
    row = encode(Example((*messages, Message(role="assistant", content="答", reasoning_content="想"))), FORMAT)
    assert FORMAT.read_reply(supervised(row)).content == "答"
    assert "旧想法" not in FORMAT.decode_text(row.ids)  # reasoning of earlier turns is not in later prompts


@pytest.mark.parametrize(
    "example",
    [
        Example(()),
        Example((Message(role="user", content="问"),)),
        Example((Message(role="user", content="问"), Message(role="assistant", content="答"))),
        Example((Message(role="user", content="问"), Message(role="assistant", content="答", reasoning_content=" \n"))),
    ],
)
def test_what_must_not_be_learned_is_refused(example: Example) -> None:
    with pytest.raises(EncodeError):
        encode(example, FORMAT)


def test_without_thinking_the_empty_thought_is_in_the_prompt(chat_format: ChatFormat) -> None:
    messages = conversation((), "问", Message(role="assistant", content="答"))
    row = encode(Example(messages, enable_thinking=False), chat_format)
    assert chat_format.control_ids["</think>"] in row.ids
    assert chat_format.control_ids["</think>"] not in supervised(row)
