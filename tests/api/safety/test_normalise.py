"""What hides a word from a reader's eye hides it not from the rules, and every place leads back to the original."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.safety.normalise import normalise


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("１００％有效", "100%有效"),
        ("絕對不會復發", "绝对不会复发"),
        ("肯 定 能\u200b治**好**", "肯定能治好"),
        ("肯\u200d定\ufeff", "肯定"),
        ("g u a r a n t e e d", "guaranteed"),
        ("Take  Two\nTablets", "take two tablets"),
        ("好，真的；对：是！吗？", "好,真的;对:是!吗?"),
        ("「没事」", "“没事”"),
        ("5 ㎎", "5 mg"),
        ("吃 5 mg 药", "吃5 mg药"),
        ("", ""),
        ("\u200b\u200b", ""),
    ],
)
def test_one_form(text: str, wanted: str) -> None:
    assert normalise(text).text == wanted


@given(st.text(max_size=200))
def test_places_lead_back(text: str) -> None:
    found = normalise(text)
    assert len(found.origin) == len(found.text) + 1
    assert list(found.origin) == sorted(found.origin)
    assert found.origin[-1] == len(text)
    for n in range(len(found.text)):
        start, end = found.span(n, n + 1)
        assert 0 <= start < end <= len(text)


@given(st.text(max_size=100))
def test_it_settles(text: str) -> None:
    once = normalise(text).text
    assert normalise(normalise(once).text).text == normalise(once).text


def test_a_span_holds_what_was_hidden_inside() -> None:
    text = "这药肯\u200b 定能治好"
    found = normalise(text)
    at = found.text.index("肯定")
    start, end = found.span(at, at + 2)
    assert text[start:end] == "肯\u200b 定"
