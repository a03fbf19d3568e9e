"""Conversations to rows: one for each assistant turn, with its tokens counted.

Qwen3's template keeps reasoning only after the last question, so a model that learned all turns of a conversation in one row
would learn from histories that it is never served with. Each turn becomes a row of its own, with bare answers before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.contract.chat_format import END_THINK, ChatFormat, Message
from services.trainer.dataset import PreparedRow
from services.trainer.encode import IGNORED, encode
from services.trainer.prepare.problems import Problem
from services.trainer.prepare.readers import Record

_ENOUGH = 8  # characters from which on a question tells one conversation from another; "你好" does not
_ENOUGH_ANSWER = 24


@dataclass(frozen=True)
class Lengths:
    """In tokens, the control tokens of each part included."""

    row: int
    prompt: int
    thinking: int
    answer: int


@dataclass(frozen=True)
class CountedRow:
    row: PreparedRow
    lengths: Lengths


def expand(record: Record) -> Iterator[tuple[str, tuple[Message, ...]]]:
    """Id and messages of each assistant turn's row."""
    replies = [i for i, message in enumerate(record.messages) if message.role == "assistant"]
    for turn, last in enumerate(replies, 1):
        name = record.where if len(replies) == 1 else f"{record.where}#{turn}"
        question = max(i for i in range(last) if record.messages[i].role == "user")
        history = [
            message.model_copy(update={"reasoning_content": None}) if i < question else message
            for i, message in enumerate(record.messages[:last])
        ]
        yield name, (*history, record.messages[last])


def make_rows(
    record: Record, group: str, chat_format: ChatFormat, system_prompt: str, max_length: int
) -> tuple[list[CountedRow], list[Problem]]:
    """Rows of a conversation, and a problem for each that is too long."""
    rows: list[CountedRow] = []
    problems: list[Problem] = []
    for name, messages in expand(record):
        thinks = bool(messages[-1].reasoning_content)
        row = PreparedRow(
            id=name, group=group, messages=messages, tools=record.tools, enable_thinking=thinks, tokens=1, supervised=1
        )
        lengths = _measure(row, chat_format, system_prompt)
        if lengths.row > max_length:
            problems.append(Problem(name, "too-long", f"{lengths.row:,} tokens, max_length is {max_length:,}"))
            continue
        counted = row.model_copy(update={"tokens": lengths.row, "supervised": lengths.thinking + lengths.answer})
        rows.append(CountedRow(counted, lengths))
    return rows, problems


def question_of(record: Record) -> str:
    """What a conversation asks: the user's turns up to the first that makes them long enough to be told from others."""
    question = ""
    for message in record.messages:
        if message.role == "user":
            question = f"{question}\n{message.content}".strip()
            if len(question) >= _ENOUGH:
                break
    return question


def answer_of(record: Record) -> str | None:
    """What tells a conversation's replies from others': its longest answer, unless that is a mere phrase."""
    answers = [message.content for message in record.messages if message.role == "assistant"]
    longest = max(answers, key=len, default="")
    return longest if len(longest) >= _ENOUGH_ANSWER else None


def _measure(row: PreparedRow, chat_format: ChatFormat, system_prompt: str) -> Lengths:
    encoded = encode(row.example(system_prompt), chat_format)
    prompt = encoded.labels.count(IGNORED)
    reply = encoded.ids[prompt:]
    end = chat_format.control_ids[END_THINK]
    thinking = reply.index(end) + 1 if row.enable_thinking else 0
    return Lengths(len(encoded.ids), prompt, thinking, len(reply) - thinking)
