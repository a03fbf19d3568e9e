"""Sentences are cut by the text alone: every chunking gives the same cuts, and together they are the text."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.api.safety.sentences import LONGEST, SentenceCutter

TEXTS = st.text(st.sampled_from("。！？；….!?;\n \t”\"'）)*，,好a1eg\u200b😀"), max_size=600)


def cut(*chunks: str) -> list[str]:
    cutter = SentenceCutter()
    found = [sentence for chunk in chunks for sentence in cutter.add(chunk)]
    return [*found, *cutter.end()]


@given(TEXTS, st.lists(st.integers(1, 40), min_size=1, max_size=20))
@example("。" * 600, [1])
@example("e.g. a" * 90, [3, 1])
def test_cuts_do_not_depend_on_chunks(text: str, sizes: list[int]) -> None:
    chunks, at, n = [], 0, 0
    while at < len(text):
        size = sizes[n % len(sizes)]
        chunks.append(text[at : at + size])
        at, n = at + size, n + 1
    assert cut(*chunks) == cut(text)
    assert "".join(cut(text)) == text
    assert all(0 < len(sentence) <= LONGEST for sentence in cut(text))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("先看血压。再看心率！好吗？", ["先看血压。", "再看心率！", "好吗？"]),
        ("他说“没事。”然后走了", ["他说“没事。”", "然后走了"]),
        ("血钾3.5mmol/L。正常", ["血钾3.5mmol/L。", "正常"]),
        ("Take 2.5 mg q.d. with food. Then rest.", ["Take 2.5 mg q.d. with food. ", "Then rest."]),
        ("1. 喝水\n2. 休息\n", ["1. 喝水\n", "2. 休息\n"]),
        ("要紧吗?!真的。", ["要紧吗?!", "真的。"]),
        ("请就诊.然后休息", ["请就诊.", "然后休息"]),
        ("Dr. Li said so. Yes", ["Dr. Li said so. ", "Yes"]),
        ("😀😀", ["😀😀"]),
        ("", []),
    ],
)
def test_where_a_sentence_ends(text: str, wanted: list[str]) -> None:
    assert cut(text) == wanted


def test_a_sentence_without_end_is_cut_on_a_clause_mark() -> None:
    sentences = cut("一二三四五六七八九，" * 60)
    assert len(sentences) > 1
    assert all(sentence.endswith("，") for sentence in sentences)


def test_nothing_leaves_before_its_end_is_certain() -> None:
    cutter = SentenceCutter()
    assert cutter.add("没事。") == []  # a quote or more marks may follow
    assert cutter.add("”") == []
    assert cutter.add("好") == ["没事。”"]
