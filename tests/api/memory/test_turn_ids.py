"""Ids of a conversation put together from its turns are those of encoding it from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from services.api.memory.records import PastTurn
from services.api.memory.turn_ids import TurnWriter
from services.contract.chat_format import CONTROL_TOKENS, ChatFormat, Message, ToolCall
from tests.fakes import demo_chat_format
from tests.qwen3 import SKIP_REASON, tokenizer_folder, unpack


@pytest.fixture(scope="module", params=["demo", "qwen3"])
def real_format(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    if request.param == "demo":
        return demo_chat_format()
    folder = tokenizer_folder()
    if folder is None:
        pytest.skip(SKIP_REASON)
    unpacked: Path = unpack(folder, tmp_path_factory.mktemp("qwen3"))
    return ChatFormat.load(unpacked, Tokenizer.from_str)


PIECES = [
    "你好",
    "咳嗽",
    " ",
    "\n",
    "\n\n",
    "a",
    "mg ",
    "é",
    "e\u0301",
    "🧪",
    "1",
    *CONTROL_TOKENS,
    "user\n",
    "assistant",
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=12
)
CALL = st.builds(ToolCall, name=st.sampled_from(["f", "dose"]), arguments=st.just('{"x": "药"}'))
ASK = st.lists(st.builds(Message, role=st.just("user"), content=TEXT), min_size=1, max_size=2)
BROUGHT = st.tuples(ASK, st.builds(Message, role=st.just("assistant"), content=TEXT), ASK).map(
    lambda parts: [*parts[0], parts[1], *parts[2]]
)
RESULTS = st.lists(st.builds(Message, role=st.just("tool"), content=TEXT), min_size=1, max_size=3)
INPUT = ASK | BROUGHT | RESULTS
TURN = st.tuples(INPUT, TEXT, st.lists(CALL, max_size=2))
TOOLS: list[list[dict[str, Any]]] = [[], [{"type": "function", "function": {"name": "f"}}]]


@settings(max_examples=120)
@given(
    system=st.none() | TEXT.filter(bool),
    tools=st.sampled_from(TOOLS),
    turns=st.lists(TURN, max_size=5),
    new=ASK | RESULTS,
)
def test_turn_by_turn_is_as_from_scratch(
    real_format: ChatFormat,
    system: str | None,
    tools: list[dict[str, Any]],
    turns: list[tuple[list[Message], str, list[ToolCall]]],
    new: list[Message],
) -> None:
    writer = TurnWriter(real_format)
    past = [PastTurn(n, "done", tuple(ask), reply, tuple(calls)) for n, (ask, reply, calls) in enumerate(turns, 1)]
    stored = [
        PastTurn(
            t.seq, t.status, t.messages, "not looked at", (), tuple(writer.input_ids(t.messages)),
            tuple(writer.reply_ids(t.reply)), writer.digest,
        )
        for t in past
    ]  # fmt: skip
    messages = [Message(role="system", content=system)] if system else []
    messages += [m for t in past for m in (*t.messages, t.reply)]
    from_scratch = real_format.write([*messages, *new], tools)
    for kept in (past, stored):
        ids = writer.system_ids(system, tools)
        for turn in kept:
            ids += writer.past_ids(turn)
        assert ids + writer.input_ids(new) == from_scratch


def test_ids_of_another_tokenizer_are_not_used(chat_format: ChatFormat) -> None:
    writer = TurnWriter(chat_format)
    turn = PastTurn(1, "done", (Message(role="user", content="q"),), "a", (), (1, 2), (3,), "another")
    expected = chat_format.write([*turn.messages, turn.reply, Message(role="user")])
    assert expected[: len(writer.past_ids(turn))] == writer.past_ids(turn)
    assert writer.system_ids("") == writer.system_ids(None) == []
