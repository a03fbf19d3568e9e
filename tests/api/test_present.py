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
LINK = re.compile(r"\[([^\[\]]+)\]\((https://[^)\s]+)\)(?:（未核实）| \(unverified\))?")
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


def plain(marked: str) -> str:
    """Without what the annotator adds."""
    return LINK.sub(r"\1", marked.replace("**", ""))


def shown(text: str, cuts: list[int], options: ThinkingOptions = ANNOTATED) -> str:
    presenter = ChoicePresenter(options, ANNOTATOR)
    borders = [0, *sorted({c % (len(text) + 1) for c in cuts}), len(text)]
    events = [Reasoning(text[a:b]) for a, b in itertools.pairwise(borders) if a < b]
    deltas = [d for e in [*events, ReasoningDone()] for d in presenter.take(e)]
    return "".join(d.reasoning for d in deltas)


FRAGMENTS = st.lists(
    st.sampled_from(
        ["首先", "，", "。", "。。", "\n", " ", ". ", "! ", "2023 ", "AHA", "/ACC", "高血压", "指南", "《中国", "》",
         "华法", "林", "war", "farin", "First", ", ", "so", "NICE", " guideline", "；", "综上", "所述", "x", "`",
         "```", "\n```\n", "[", "]", "](", ")", "<b>", "<", "https://a.org/", "2024 ESC", "ADA", " NG136", "~~~"]
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
@example(parts=["[", "首先", "2024 ESC"], cuts=[])  # an open bracket of the text is not the link's
def test_annotating_loses_no_character(parts, cuts) -> None:
    text = "".join(parts)
    assert plain(shown(text, cuts)) == text


def test_an_annotated_sentence_is_shown_before_the_thought_is_over() -> None:
    presenter = ChoicePresenter(ANNOTATED, ANNOTATOR)
    assert list(presenter.take(Reasoning("首先量血压。"))) == []
    assert [d.reasoning for d in presenter.take(Reasoning("其次"))] == ["**首先**量血压。"]


def linked(text: str) -> dict[str, str]:
    """Mentions that were linked, and where to."""
    return {
        m[1]: m[2] + ("?" if m[0].endswith(("（未核实）", " (unverified)")) else "")
        for m in LINK.finditer(shown(text, []))
    }


@pytest.mark.parametrize(
    ("text", "mention", "address"),
    [
        ("按ADA指南处理。", "ADA指南", "https://diabetesjournals.org/care/issue/49/Supplement_1"),
        ("2024 ADA糖尿病诊疗标准指出。", "2024 ADA糖尿病诊疗标准", "https://diabetesjournals.org/care/issue/47/Supplement_1"),
        ("依据《中国2型糖尿病防治指南（2020年版）》。", "《中国2型糖尿病防治指南（2020年版）》", "https://doi.org/10.3760/cma.j.cn115791-20210221-00095"),
        ("见NICE NG136。", "NICE NG136", "https://www.nice.org.uk/guidance/ng136"),
        ("See NICE guideline CG150 now.", "NICE guideline CG150", "https://www.nice.org.uk/guidance/cg150"),
        ("See the NICE guideline on headache.", "NICE guideline", "https://www.nice.org.uk/guidance/cg150"),
        ("２０１７ ACC/AHA高血压指南建议。", "２０１７ ACC/AHA高血压指南", "https://doi.org/10.1161/HYP.0000000000000065"),
        ("2025 AHA/ACC高血压指南建议。", "2025 AHA/ACC高血压指南", "https://doi.org/10.1161/CIR.0000000000001356"),
        ("The 2024 ESC Guidelines for the management of atrial fibrillation say so.", "2024 ESC Guidelines", "https://doi.org/10.1093/eurheartj/ehae176"),
        ("GOLD 2025建议。", "GOLD 2025", "https://goldcopd.org/"),
        ("KDIGO慢性肾脏病指南建议。", "KDIGO慢性肾脏病指南", "https://doi.org/10.1016/j.kint.2023.10.018"),
    ],
)  # fmt: skip
def test_a_guideline_that_is_known_links_to_itself(text, mention, address) -> None:
    assert linked(text) == {mention: address}


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        ("依据2023 AHA/ACC高血压指南。", "2023 AHA/ACC高血压指南"),  # there is none of that year
        ("依据《中国高血压防治指南（2024年修订版）》。", "《中国高血压防治指南（2024年修订版）》"),
        ("依据2024 ESC处理。", "2024 ESC"),  # which one?
        ("按ESC指南。", "ESC指南"),
        ("See NICE NG999 here.", "NICE NG999"),
        ("ADA guidelines on snoring say no.", "ADA guidelines"),
    ],
)
def test_a_guideline_that_is_not_known_is_a_search_and_marked(text, mention) -> None:
    found = linked(text)
    assert set(found) == {mention}
    assert found[mention].startswith("https://pubmed.ncbi.nlm.nih.gov/?term=")
    assert found[mention].endswith("?")


@pytest.mark.parametrize(
    "text",
    [
        "服用`华法林`即可。",
        "见[华法林说明](https://example.org/a)。",
        "见[因此。华法林](https://example.org/a)完。",
        "<a title='华法林'>",
        "见https://example.org/warfarin/aspirin 页",
        "```\n首先。华法林。\n因此\n```\n",
        "~~~text\n华法林\n```\n华法林\n~~~\n",
        "**首先**到院",
        "`华法林。阿司匹林`",
    ],
)
def test_code_links_and_tags_are_left_alone(text) -> None:
    assert shown(text, list(range(99))) == text


def test_after_a_code_block_marking_goes_on() -> None:
    assert shown("```\n因此\n```\n因此停药。", []) == "```\n因此\n```\n**因此**停药。"


def test_the_longest_name_of_a_drug_wins() -> None:
    marked = Annotator({"阿司匹林": "https://a", "阿司匹林肠溶片": "https://b"}).annotate("阿司匹林肠溶片和阿司匹林。")
    assert marked == "[阿司匹林肠溶片](https://b)和[阿司匹林](https://a)。"


@given(parts=FRAGMENTS, cuts=st.lists(st.integers(0, 80), max_size=30))
def test_no_delta_ends_inside_a_link(parts, cuts) -> None:
    """What the annotator adds comes whole; brackets of the model's own are its own."""
    text = "".join(part for part in parts if not set(part) & set("[]()`<~"))
    presenter = ChoicePresenter(ANNOTATED, ANNOTATOR)
    borders = [0, *sorted({c % (len(text) + 1) for c in cuts}), len(text)]
    events = [Reasoning(text[a:b]) for a, b in itertools.pairwise(borders) if a < b]
    for delta in [d for e in [*events, ReasoningDone()] for d in presenter.take(e)]:
        rest = LINK.sub("", delta.reasoning)
        assert not set(rest) & set("[]()"), delta.reasoning
        assert rest.count("**") % 2 == 0


def test_a_backtick_that_is_never_closed_holds_nothing_for_long() -> None:
    presenter = ChoicePresenter(ANNOTATED, ANNOTATOR)
    given_early = [d.reasoning for d in presenter.take(Reasoning("`" + "量血压。" * 400))]
    assert len("".join(given_early)) > 800


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
