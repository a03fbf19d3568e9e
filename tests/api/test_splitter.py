"""Token ids as events: any chunking alike, no tag ever shown."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.api.events import Answer, Event, Reasoning, ReasoningDone, TokenLogprob, TokenLogprobs, ToolCallDelta
from services.api.thinking.splitter import Part, ReplySplitter
from services.api.thinking.token_text import TokenTexts
from services.contract.chat_format import (
    CONTROL_TOKENS,
    END_THINK,
    END_TOOL_CALL,
    IM_END,
    IM_START,
    THINK,
    TOOL_CALL,
    ChatFormat,
)
from tests.fakes import Pen, joined

CALL = '\n{"name": "dose", "arguments": {"drug": "华法林"}}\n'
TAGS = [THINK, END_THINK, TOOL_CALL, END_TOOL_CALL]


def splitter_of(
    texts: TokenTexts, chat_format: ChatFormat, start: Part = Part.START, tools: bool = True
) -> ReplySplitter:
    ids = itertools.count()
    return ReplySplitter(
        chat_format.control_ids, texts.detokenizer, start=start, tools=tools, new_call_id=lambda: f"call_{next(ids)}"
    )


def chunked(ids: Sequence[int], cuts: Sequence[int]) -> list[list[int]]:
    borders = [0, *sorted({cut % (len(ids) + 1) for cut in cuts}), len(ids)]
    return [list(ids[a:b]) for a, b in itertools.pairwise(borders)]


@pytest.fixture(scope="session")
def split(texts: TokenTexts, chat_format: ChatFormat) -> Callable[..., list[Event]]:
    def run(ids: Sequence[int], cuts: Sequence[int] = (), **options: object) -> list[Event]:
        splitter = splitter_of(texts, chat_format, **options)  # type: ignore[arg-type]
        events = [e for chunk in chunked(ids, cuts) for e in splitter.feed(chunk)]
        return joined([*events, *splitter.end()])

    return run


def shown(events: Sequence[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, Reasoning | Answer))


# Any reply a model could write, sensible or not: tags anywhere, characters over several tokens, unfinished calls.
PIECES = st.one_of(
    st.sampled_from(
        [*TAGS, IM_END, IM_START, "\n", "\n\n", "首先，血压180/110。", "👩‍⚕️", "EF 35%", CALL, "{", "<thi", "nk>", "é"]
    ),
    st.text(max_size=6),
)
REPLIES = st.lists(PIECES, max_size=14)
CUTS = st.lists(st.integers(0, 200), max_size=20)
CHUNKED_REPLY = [THINK, "\n想👩‍⚕️", END_THINK, "\n\n答", TOOL_CALL, CALL, END_TOOL_CALL, "\n完"]


@given(parts=REPLIES, cuts=CUTS, start=st.sampled_from([Part.START, Part.ANSWER]), tools=st.booleans())
@example(parts=CHUNKED_REPLY, cuts=list(range(60)), start=Part.START, tools=True)
def test_any_chunking_of_a_reply_gives_the_same_events(split, pen: Pen, parts, cuts, start, tools) -> None:
    ids = pen.write(*parts)
    assert split(ids, cuts, start=start, tools=tools) == split(ids, start=start, tools=tools)


@given(parts=REPLIES, tools=st.booleans())
def test_token_by_token_is_the_same_as_all_at_once(split, pen: Pen, parts, tools) -> None:
    ids = pen.write(*parts)
    assert split(ids, range(len(ids)), tools=tools) == split(ids, tools=tools)


@given(
    parts=st.lists(st.one_of(st.sampled_from([*CONTROL_TOKENS]), st.text("想答\nab👩", max_size=4)), max_size=14),
    cuts=CUTS,
    tools=st.booleans(),
)
def test_no_tag_is_shown_whole_or_in_part(split, pen: Pen, parts, cuts, tools) -> None:
    """The texts have no `<`, so that any `<` shown would be a tag's."""
    text = shown(split(pen.write(*parts), cuts, tools=tools))
    for call in (TOOL_CALL, END_TOOL_CALL):  # a malformed call is shown on purpose, see below
        text = text.replace(call, "")
    assert "<" not in text
    assert ">" not in text


@given(reasoning=st.text(max_size=30), answer=st.text(max_size=30), cuts=CUTS)
@example(reasoning="因为👨‍👩‍👧‍👦", answer="所以🩺", cuts=list(range(80)))
def test_thought_and_answer_come_apart_as_chat_format_reads_them(
    split, pen: Pen, chat_format: ChatFormat, reasoning, answer, cuts
) -> None:
    ids = pen.thought(reasoning, answer)
    events = split(ids, cuts, tools=False)
    read = chat_format.read_reply(ids)
    assert "".join(e.text for e in events if isinstance(e, Reasoning)) == (read.reasoning_content or "")
    assert "".join(e.text for e in events if isinstance(e, Answer)) == read.content


def test_a_thought_ends_before_its_answer_begins(split, pen: Pen) -> None:
    assert split(pen.thought("想", "答")) == [Reasoning("想"), ReasoningDone(), Answer("答")]


def test_a_character_over_several_tokens_appears_once_and_whole(texts, chat_format, pen: Pen) -> None:
    ids = pen.text("🩺")
    assert len(ids) > 1, "the demo tokenizer has learnt this emoji as one token: choose another"
    splitter = splitter_of(texts, chat_format, Part.ANSWER, tools=False)
    events = [splitter.feed([i]) for i in ids]
    assert events[:-1] == [[]] * (len(ids) - 1)
    assert events[-1] == [Answer("🩺")]


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("behind", [0, 1, 3])
def test_the_closing_tag_may_stand_anywhere_in_a_delta(texts, chat_format, pen: Pen, before, behind) -> None:
    thought, answer = pen.text("想想看再说")[: before or None], pen.text("回答如下")[: behind or None]
    splitter = splitter_of(texts, chat_format, tools=False)
    events = splitter.feed(pen.write(THINK))
    if not before:
        events += splitter.feed(thought)
    events += splitter.feed([*(thought if before else []), *pen.ids(END_THINK), *(answer if behind else [])])
    if not behind:
        events += splitter.feed(answer)
    text = [chat_format.decode_text(thought), chat_format.decode_text(answer)]
    assert joined(events) == [Reasoning(text[0]), ReasoningDone(), Answer(text[1])]


def test_a_model_that_does_not_think_is_taken_at_its_word(split, pen: Pen) -> None:
    assert split(pen.answer("直接回答")) == [Answer("直接回答")]


@pytest.mark.parametrize("inside", ["", "\n", "\n\n", "\n\n\n\n"])
def test_an_empty_thought_leaves_no_trace(split, pen: Pen, inside) -> None:
    assert split(pen.write(THINK, inside, END_THINK, "\n\n", "答", IM_END)) == [Answer("答")]


def test_a_closing_tag_without_an_opening_one_begins_the_answer(split, pen: Pen) -> None:
    assert split(pen.write(END_THINK, "\n\n", "答", IM_END)) == [Answer("答")]


def test_doubled_tags_show_nothing_and_change_nothing(split, pen: Pen) -> None:
    once = split(pen.write(THINK, "想", END_THINK, "\n\n", "答", IM_END))
    assert split(pen.write(THINK, THINK, "想", THINK, END_THINK, END_THINK, "\n\n", "答", THINK, END_THINK)) == once


def test_a_thought_that_is_cut_off_is_reasoning_and_over(split, pen: Pen) -> None:
    assert split(pen.write(THINK, "\n想了一半")) == [Reasoning("想了一半"), ReasoningDone()]


def test_newlines_inside_are_kept_and_framing_ones_are_not(split, pen: Pen) -> None:
    events = split(pen.write(THINK, "\n\n一\n\n二\n\n", END_THINK, "\n\n", "三\n\n四\n"), tools=False)
    assert events == [Reasoning("一\n\n二"), ReasoningDone(), Answer("三\n\n四\n")]


def test_tags_that_the_model_types_as_plain_tokens_are_text(split, pen: Pen) -> None:
    literal = "<think>不是标签</think><tool_call>也不是</tool_call>"
    assert pen.ids(THINK)[0] not in pen.text(literal)
    events = split(pen.thought("写作 <think> 与 </think>", literal))
    assert events == [Reasoning("写作 <think> 与 </think>"), ReasoningDone(), Answer(literal)]


# Tools


def test_a_call_in_the_answer_becomes_a_tool_call(split, pen: Pen) -> None:
    ids = pen.write(THINK, "\n查剂量\n", END_THINK, "\n\n", "我查一下。\n", TOOL_CALL, CALL, END_TOOL_CALL, IM_END)
    assert split(ids) == [
        Reasoning("查剂量"),
        ReasoningDone(),
        Answer("我查一下。"),
        ToolCallDelta(0, "call_0", "dose"),
        ToolCallDelta(0, arguments='{"drug": "华法林"}'),
    ]


def test_several_calls_are_numbered(split, pen: Pen) -> None:
    ids = pen.write(TOOL_CALL, CALL, END_TOOL_CALL, "\n", TOOL_CALL, CALL, END_TOOL_CALL, IM_END)
    calls = split(ids, start=Part.ANSWER)
    assert [(c.index, c.call_id) for c in calls if isinstance(c, ToolCallDelta) and c.name] == [
        (0, "call_0"),
        (1, "call_1"),
    ]
    assert shown(calls) == ""


def test_a_call_inside_a_thought_ends_the_thought(split, pen: Pen) -> None:
    events = split(pen.write(THINK, "\n要查\n", TOOL_CALL, CALL, END_TOOL_CALL, IM_END))
    assert events == [
        Reasoning("要查"),
        ReasoningDone(),
        ToolCallDelta(0, "call_0", "dose"),
        ToolCallDelta(0, arguments='{"drug": "华法林"}'),
    ]


@pytest.mark.parametrize(
    "body",
    [
        "这不是调用",
        '{"name": 5, "arguments": {}}',
        '{"arguments": {}}',
        '{"name": "dose", "arguments": {"drug": "华法林"}',
        '{"name": "dose", "arguments": {"drug": }}',
        '{"name": "dose", "arguments": {"drug": "华法林"}}}',
        '{"name": "dose", "arguments": "不是对象"}',
        "[]",
        "",
    ],
)
def test_a_malformed_call_is_shown_as_the_text_that_it_is(split, pen: Pen, body) -> None:
    """As vLLM's Hermes parser does it; a client that parses `arguments` never meets broken JSON."""
    events = split(pen.write(TOOL_CALL, body, END_TOOL_CALL, IM_END), start=Part.ANSWER)
    assert events == [Answer(f"{TOOL_CALL}{body}{END_TOOL_CALL}")]


def test_an_unfinished_but_whole_call_is_a_call(split, pen: Pen) -> None:
    events = split(pen.write(TOOL_CALL, CALL), start=Part.ANSWER)
    assert [e.name for e in events if isinstance(e, ToolCallDelta) and e.name] == ["dose"]


def test_an_unfinished_call_is_not_lost(split, pen: Pen) -> None:
    events = split(pen.write(TOOL_CALL, '\n{"name": "dose", "argum'), start=Part.ANSWER)
    assert '{"name": "dose", "argum' in shown(events)
    assert not any(isinstance(e, ToolCallDelta) for e in events)


def test_without_tools_a_call_is_read_as_text(split, pen: Pen) -> None:
    events = split(pen.write("查：", TOOL_CALL, CALL, END_TOOL_CALL), start=Part.ANSWER, tools=False)
    assert events == [Answer("查：" + CALL)]


@given(
    cuts=CUTS,
    value=st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), st.lists, max_leaves=5),
)
def test_arguments_arrive_as_the_model_spelt_them(split, pen: Pen, cuts, value) -> None:
    arguments = json.dumps({"值": value}, ensure_ascii=False)
    ids = pen.write(TOOL_CALL, f'\n{{"name": "f", "arguments": {arguments}}}\n', END_TOOL_CALL)
    # Qwen3's tokenizer normalises to NFC, so what the model "wrote" is what the ids decode to.
    written = pen.chat_format.decode_text(ids)
    got = "".join(e.arguments for e in split(ids, cuts, start=Part.ANSWER) if isinstance(e, ToolCallDelta))
    assert got in written
    assert json.loads(got) == json.loads(written)["arguments"]


# Counting and log-probabilities


@given(parts=REPLIES, cuts=CUTS)
def test_reasoning_tokens_do_not_depend_on_chunking(texts, chat_format, pen: Pen, parts, cuts) -> None:
    ids = pen.write(*parts)
    one, other = splitter_of(texts, chat_format), splitter_of(texts, chat_format)
    one.feed(ids)
    for chunk in chunked(ids, cuts):
        other.feed(chunk)
    assert one.reasoning_tokens == other.reasoning_tokens


def test_reasoning_tokens_are_the_thought_with_its_tags(texts, chat_format, pen: Pen) -> None:
    splitter = splitter_of(texts, chat_format)
    splitter.feed(pen.thought("想", "答"))
    assert splitter.reasoning_tokens == len(pen.write(THINK, "\n想\n", END_THINK))


@given(cuts=CUTS, tools=st.booleans())
def test_every_shown_token_of_the_answer_brings_its_logprobs(texts, chat_format, pen: Pen, cuts, tools) -> None:
    answer = pen.text("回答👩‍⚕️\n\n如下")
    ids = [*pen.write(THINK, "\n想\n", END_THINK, "\n\n"), *answer, *pen.ids(IM_END)]
    splitter = splitter_of(texts, chat_format, tools=tools)
    events, at = [], 0
    for chunk in chunked(ids, cuts):
        marks = [TokenLogprobs(TokenLogprob(i, -0.1, "", b""), ()) for i in chunk]
        events += splitter.feed(chunk, marks)
        at += len(chunk)
    events += splitter.end()
    assert [p.sampled.token_id for e in events if isinstance(e, Answer) for p in e.logprobs] == answer
