"""Terms and their scopes: combinations, senses, polarity, questions, quotes; and what a broken pattern is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.safety.normalise import normalise
from services.api.safety.terms import Cue, Term, TermError, TermMatcher, expand

WORDS = {"sure": ["肯定", "绝对", "guaranteed"], "cure": ["治好", "cure"]}
CUES = (
    Cue("negated", before=("不", r"\bnot\b"), unless=("不仅",), reach=6),
    Cue("refuted", after=("的说法.{0,4}错",), reach=20, stops="。"),
    Cue("asked", anywhere=(r"吗\?",)),
)
SURE = Term(
    "sure", "claims", (("{sure}", "{cure}"),), within=16, unless=("绝对值",), passes=frozenset({"negated", "refuted"})
)


def active(text: str, *terms: Term, facts: frozenset[str] = frozenset()) -> list[str]:
    matcher = TermMatcher(terms or (SURE,), CUES, WORDS)
    return [find.term.id for find in matcher.find(normalise(text).text, facts) if find.is_active]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("肯定能治好", True),
        ("治好，绝对的", True),
        ("肯定要很多很多很多很多很多很多很多天以后才能治好", False),  # too far apart
        ("不肯定能治好", False),
        ("不仅肯定能治好", True),
        ("“肯定能治好”的说法是错的", False),
        ("绝对值高也能治好", False),
        ("肯定能治好吗？", True),  # this term does not pass questions
        ("guaranteed cure", True),
        ("", False),
    ],
)
def test_finds(text: str, wanted: bool) -> None:
    assert (active(text) == ["sure"]) is wanted


def test_one_active_place_is_enough() -> None:
    assert active("不肯定能治好。绝对能治好") == ["sure"]


def test_facts_are_asked_for() -> None:
    fever = Term("infant-fever", "flags", (("发烧",),), needs=frozenset({"infant"}))
    assert active("发烧", fever) == []
    assert active("发烧", fever, facts=frozenset({"infant"})) == ["infant-fever"]


def test_places_and_scopes() -> None:
    """Scopes are told as far as they take the term back."""
    shy = Term("shy", "claims", SURE.any_of, passes=frozenset({"asked"}))
    (find,) = TermMatcher((shy,), CUES, WORDS).find("这药肯定能治好吗?")
    assert (find.start, find.end) == (2, 7)
    assert find.scopes == {"asked"}
    (bold,) = TermMatcher((SURE,), CUES, WORDS).find("这药肯定能治好吗?")
    assert bold.scopes == frozenset()


@pytest.mark.parametrize("opening", ["“", '"'])
def test_quotes(opening: str) -> None:
    closing = "”" if opening == "“" else opening
    term = Term("sure", "claims", SURE.any_of, passes=frozenset({"quoted"}))
    matcher = TermMatcher((term,), CUES, WORDS)
    (find,) = matcher.find(f"他说{opening}肯定能治好{closing}")
    assert "quoted" in find.scopes


def test_a_text_that_repeats_itself_stays_quick() -> None:
    assert active("肯定" * 50_000) == []
    assert active("治好" * 100 + "肯定") == ["sure"]


def test_what_does_not_compile_is_named() -> None:
    with pytest.raises(TermError, match="term bad"):
        TermMatcher([Term("bad", "x", (("(",),))], (), {})
    with pytest.raises(TermError, match="nowhere"):
        expand("{nowhere}", {})
    with pytest.raises(TermError, match="circle"):
        expand("{a}", {"a": ["{b}"], "b": ["{a}"]})


@given(st.lists(st.text(alphabet="肯定不能治好,。ab ", max_size=30), max_size=12))
def test_what_is_kept_of_a_text_is_what_it_had(texts: list[str]) -> None:
    found = TermMatcher((SURE,), CUES, WORDS)
    for facts in (frozenset[str](), frozenset({"pregnant"})):
        for text in [*texts, *texts]:
            assert list(found.find_again(text, facts)) == found.find(text, facts)


def test_no_text_is_kept_and_not_more_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.api.safety.terms._MOST_FOUND", 2)
    found = TermMatcher((SURE,), CUES, WORDS)
    for text in ("能治好", "不能治好", "治好了"):
        found.find_again(text)
    assert len(found._found) == 2
    assert "治好" not in repr(list(found._found))
