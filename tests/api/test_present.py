"""Reasoning for people: connectives bold, guidelines and drugs linked, whatever the chunking."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.api.app import read_annotator
from services.api.events import Answer, Finished, Reasoning, ReasoningDone, ToolCallDelta, Usage
from services.api.http.deltas import ChoicePresenter
from services.api.thinking.options import ThinkingOptions
from services.api.thinking.present import Annotator

ANNOTATOR = read_annotator()
LINK = re.compile(r"\[([^\]]+)\]\((https://[^)\s]+)\)")
ANNOTATED = ThinkingOptions(annotated=True)


@pytest.mark.parametrize("word", ["首先", "其次", "再次", "然后", "最后", "因此", "综上", "综上所述", "所以"])
def test_chinese_connectives_are_bold(word) -> None:
    assert ANNOTATOR.annotate(f"{word}考虑卒中。") == f"**{word}**考虑卒中。"


@pytest.mark.parametrize(
    "word", ["First", "first", "Second", "Then", "Finally", "Therefore", "therefore", "In summary"]
)
def test_english_connectives_are_bold(word) -> None:
    assert ANNOTATOR.annotate(f"{word}, check glucose.") == f"**{word}**, check glucose."


@pytest.mark.parametrize(
    "text", ["thirsty patients", "authentic", "firsthand report", "sofa", "nextdoor", "the finals"]
)
def test_words_that_only_contain_a_connective_stay_plain(text) -> None:
    assert ANNOTATOR.annotate(text) == text


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        ("依据2023 AHA/ACC高血压指南处理。", "2023 AHA/ACC高血压指南"),
        ("依据《中国高血压防治指南(2024年修订版)》处理。", "《中国高血压防治指南(2024年修订版)》"),
        ("按照中国高血压防治指南处理。", "中国高血压防治指南"),
        ("See the NICE guideline on headache.", "NICE guideline"),
        ("See WHO guidelines.", "WHO guidelines"),
        ("按ESC指南。", "ESC指南"),
    ],
)
def test_guidelines_are_linked(text, linked) -> None:
    found = LINK.findall(ANNOTATOR.annotate(text))
    assert [name for name, _ in found] == [linked]


@pytest.mark.parametrize(
    ("text", "name", "code"),
    [
        ("患者服用华法林。", "华法林", "B01AA03"),
        ("二甲双胍为首选。", "二甲双胍", "A10BA02"),
        ("Warfarin interacts.", "Warfarin", "B01AA03"),
        ("give aspirin now", "aspirin", "B01AC06"),
    ],
)
def test_drugs_are_linked_to_their_atc_code(text, name, code) -> None:
    found = LINK.findall(ANNOTATOR.annotate(text))
    assert [n for n, _ in found] == [name]
    assert code in found[0][1]


def test_links_are_valid_markdown_and_change_no_word() -> None:
    text = "首先，依据2023 AHA/ACC高血压指南，华法林与阿司匹林合用；therefore, stop ibuprofen."
    marked = ANNOTATOR.annotate(text)
    assert re.sub(r"\*\*", "", LINK.sub(r"\1", marked)) == text


def test_an_annotator_without_drugs_still_marks_connectives() -> None:
    assert Annotator({}).annotate("因此用华法林") == "**因此**用华法林"


def shown(text: str, cuts: list[int], options: ThinkingOptions = ANNOTATED) -> str:
    presenter = ChoicePresenter(options, ANNOTATOR)
    borders = [0, *sorted({c % (len(text) + 1) for c in cuts}), len(text)]
    events = [Reasoning(text[a:b]) for a, b in itertools.pairwise(borders) if a < b]
    deltas = [d for e in [*events, ReasoningDone()] for d in presenter.take(e)]
    return "".join(d.reasoning for d in deltas)


FRAGMENTS = st.lists(
    st.sampled_from(
        ["首先", "，", "。", "。。", "\n", " ", ". ", "! ", "2023 ", "AHA", "/ACC", "高血压", "指南", "《中国", "》",
         "华法", "林", "war", "farin", "First", ", ", "so", "NICE", " guideline", "；", "综上", "所述", "x"]
    ),
    max_size=14,
)  # fmt: skip


@given(parts=FRAGMENTS, cuts=st.lists(st.integers(0, 80), max_size=30))
@example(parts=["AHA", "\n", "指南", "。", "x"], cuts=list(range(20)))
@example(parts=["so", "\n", "x"], cuts=list(range(20)))
def test_annotations_do_not_depend_on_chunking(parts, cuts) -> None:
    text = "".join(parts)
    assert shown(text, cuts) == shown(text, [])


@given(parts=FRAGMENTS, cuts=st.lists(st.integers(0, 80), max_size=30))
def test_annotating_loses_no_character(parts, cuts) -> None:
    text = "".join(parts)
    assert LINK.sub(r"\1", shown(text, cuts).replace("**", "")) == text


def test_an_annotated_sentence_is_shown_before_the_thought_is_over() -> None:
    presenter = ChoicePresenter(ANNOTATED, ANNOTATOR)
    assert list(presenter.take(Reasoning("首先量血压。"))) == []
    assert [d.reasoning for d in presenter.take(Reasoning("其次"))] == ["**首先**量血压。"]


# Deltas


def deltas(options: ThinkingOptions, *events) -> list:
    presenter = ChoicePresenter(options, ANNOTATOR)
    return [d for e in [*events, Finished("stop", Usage())] for d in presenter.take(e)]


def test_reasoning_stands_beside_content() -> None:
    got = deltas(ThinkingOptions(), Reasoning("想"), ReasoningDone(), Answer("答"))
    assert [(d.reasoning, d.content) for d in got] == [("想", ""), ("", "答")]


def test_markers_frame_both_parts_inside_content_and_the_fields_are_kept() -> None:
    got = deltas(
        ThinkingOptions(in_content=True), Reasoning("想"), Reasoning("完"), ReasoningDone(), Answer("答"), Answer("。")
    )
    assert "".join(d.content for d in got) == "<|ReasoningBegin|>想完<|ReasoningEnd|><|AnswerBegin|>答。"
    assert "".join(d.reasoning for d in got) == "想完"


def test_markers_without_a_thought_frame_the_answer_alone() -> None:
    assert "".join(d.content for d in deltas(ThinkingOptions(in_content=True), Answer("答"))) == "<|AnswerBegin|>答"


def test_a_frame_that_was_opened_is_closed_even_without_an_answer() -> None:
    assert "".join(d.content for d in deltas(ThinkingOptions(in_content=True), Reasoning("想"))) == (
        "<|ReasoningBegin|>想<|ReasoningEnd|>"
    )


def test_a_tool_call_closes_the_reasoning_frame_first() -> None:
    call = ToolCallDelta(0, "c", "f")
    got = deltas(ThinkingOptions(in_content=True), Reasoning("想"), call)
    assert [d.tool_call for d in got] == [None, None, call]
    assert got[1].content == "<|ReasoningEnd|>"


@pytest.mark.parametrize("annotated", [True, False])
def test_hidden_reasoning_is_nowhere(annotated) -> None:
    options = ThinkingOptions(shown=False, annotated=annotated)
    got = deltas(options, Reasoning("首先想。然后"), ReasoningDone(), Answer("答"))
    assert [(d.reasoning, d.content) for d in got] == [("", "答")]


def test_annotations_are_in_the_fields_and_in_content_alike() -> None:
    got = deltas(
        ThinkingOptions(in_content=True, annotated=True), Reasoning("因此停药"), ReasoningDone(), Answer("因此停药")
    )
    assert "".join(d.reasoning for d in got) == "**因此**停药"
    assert "".join(d.content for d in got) == "<|ReasoningBegin|>**因此**停药<|ReasoningEnd|><|AnswerBegin|>因此停药"
