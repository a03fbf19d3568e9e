"""The labelled safety cases are well formed, and their two halves are alike without repeating each other."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

CASES = Path(__file__).parent / "cases"
HALVES = ("develop", "held_out")
Case = dict[str, Any]

KEYS = {"id", "category", "lang", "reply", "expected", "rule", "note"}
LANGUAGES = {"zh", "zh-Hant", "en"}
# Which verdicts each rule can lead to when it is broken.
VERDICTS = {
    "absolute_claim": {"block"},
    "unapproved_therapy": {"block"},
    "missing_emergency_advice": {"amend", "block"},
    "self_harm": {"amend", "block"},
    "dosage": {"block"},
    "pregnancy": {"block"},
    "allergy": {"block"},
    "prompt_injection": {"block"},
    "phi_leak": {"block"},
    "none": {"pass"},
}
FEWEST = 250
MOST_ALIKE = 0.6
HAN = re.compile(r"[\u4e00-\u9fff]")
# Characters that only the one script has.
SIMPLIFIED, TRADITIONAL = frozenset("这们说药医诊发觉吗疗"), frozenset("這們說藥醫診發覺嗎療")


@cache
def half(name: str) -> tuple[Case, ...]:
    lines = (CASES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


def cases() -> list[Case]:
    return [case for name in HALVES for case in half(name)]


def words(case: Case) -> str:
    """All that was said in a case: every turn, and the reply."""
    turns = [case["user"]] if "user" in case else [turn["content"] for turn in case["messages"]]
    return "\n".join([*turns, case["reply"]])


def grams(text: str, size: int = 5) -> set[str]:
    dense = re.sub(r"\s", "", text)
    return {dense[at : at + size] for at in range(len(dense) - size + 1)}


@pytest.mark.parametrize("name", HALVES)
def test_every_case_has_the_keys_and_values_of_its_kind(name: str) -> None:
    for case in half(name):
        told = set(case) - KEYS
        assert set(case) >= KEYS, case["id"]
        assert told in ({"user"}, {"messages"}), case["id"]
        assert case["lang"] in LANGUAGES, case["id"]
        assert case["rule"] in VERDICTS, case["id"]
        texts = [value for key, value in case.items() if key != "messages"]
        assert all(isinstance(text, str) and text.strip() for text in texts), case["id"]
        for turn in case.get("messages", ()):
            assert set(turn) == {"role", "content"}, case["id"]
            assert turn["content"].strip(), case["id"]
        roles = [turn["role"] for turn in case.get("messages", ())]
        assert roles == [("user", "assistant")[at % 2] for at in range(len(roles))], case["id"]
        assert len(roles) % 2 == 1 or "user" in case, case["id"]


def test_there_are_enough_cases_and_no_identifier_twice() -> None:
    found = Counter(case["id"] for case in cases())
    assert found.total() >= FEWEST
    assert [name for name, times in found.items() if times > 1] == []


def test_the_verdict_fits_the_rule() -> None:
    wrong = [case["id"] for case in cases() if case["expected"] not in VERDICTS[case["rule"]]]
    assert wrong == []


def test_the_number_in_the_category_decides_the_half() -> None:
    for name, odd in zip(HALVES, (1, 0), strict=True):
        for case in half(name):
            category, _, number = case["id"].rpartition("-")
            assert category == case["category"], case["id"]
            assert int(number) % 2 == odd, case["id"]


def test_both_halves_have_every_category_rule_verdict_and_language() -> None:
    for key in ("category", "rule", "expected", "lang"):
        left, right = ({case[key] for case in half(name)} for name in HALVES)
        assert left == right, key
    assert {case["rule"] for case in cases()} == set(VERDICTS)
    assert {case["lang"] for case in cases()} == LANGUAGES


def test_the_language_is_the_one_the_case_is_written_in() -> None:
    for case in cases():
        text = words(case)
        if case["lang"] == "en":
            assert len(HAN.findall(text)) < len(text) / 4, case["id"]
        else:
            assert HAN.search(text), case["id"]
    written = {lang: {char for case in cases() if case["lang"] == lang for char in words(case)} for lang in LANGUAGES}
    assert written["zh"] >= SIMPLIFIED
    assert not written["zh"] & TRADITIONAL
    assert written["zh-Hant"] >= TRADITIONAL


def test_no_case_of_one_half_repeats_one_of_the_other() -> None:
    left, right = ([(case["id"], grams(words(case))) for case in half(name)] for name in HALVES)
    alike = [
        (mine, theirs)
        for (mine, ours), (theirs, others) in product(left, right)
        if len(ours & others) >= MOST_ALIKE * len(ours | others)
    ]
    assert alike == []
