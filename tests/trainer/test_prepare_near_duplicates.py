"""Groups of like questions: nothing is missed that comparing every pair would find."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.prepare.near_duplicates import Groups, character_ngrams, find_similar, jaccard, join_similar
from services.trainer.prepare.texts import comparable


def _roots(texts: list[str], threshold: float) -> list[int]:
    groups = Groups(len(texts))
    join_similar(dict(enumerate(texts)), threshold, groups)
    return [groups.root(index) for index in range(len(texts))]


def _by_all_pairs(texts: list[str], threshold: float) -> list[int]:
    groups = Groups(len(texts))
    sets = [character_ngrams(comparable(text)) for text in texts]
    for one, other in itertools.combinations(range(len(texts)), 2):
        if jaccard(sets[one], sets[other]) >= threshold:
            groups.join(one, other)
    return [groups.root(index) for index in range(len(texts))]


TEXTS = st.lists(st.text(alphabet="abcd发热", max_size=14), max_size=25)


@given(TEXTS, st.sampled_from([0.2, 0.3, 0.5, 0.6, 0.7, 0.9, 1.0]))
def test_the_index_finds_what_comparing_all_pairs_finds(texts: list[str], threshold: float) -> None:
    assert _roots(texts, threshold) == _by_all_pairs(texts, threshold)


def test_case_width_and_punctuation_do_not_tell_questions_apart() -> None:
    assert _roots(["孩子发热38.5度，怎么办？", "孩子发热３８５度怎么办", "別的问题在这里"], 1.0) == [0, 0, 2]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (
            "糖尿病患者空腹血糖8.2mmol/L，是否需要调整胰岛素剂量？",
            "糖尿病患者空腹血糖8.2mmol/L,需要调整胰岛素剂量吗?",
            True,
        ),
        ("糖尿病患者空腹血糖8.2mmol/L，是否需要调整胰岛素剂量？", "高血压患者晨起头晕，是否需要调整降压药？", False),
        ("孩子发热三天了，家里可以怎么处理，发热要紧吗？", "孩子发热三天了，家里应该怎么处理，发热要紧吗？", True),
        ("孩子发热三天了，家里可以怎么处理，发热要紧吗？", "孩子腹泻三天了，家里可以怎么处理，腹泻要紧吗？", False),
        ("布洛芬的儿童剂量是多少", "对乙酰氨基酚的儿童剂量是多少", False),
        ("How long should I rest after a concussion?", "How long should I rest after my concussion?", True),
        ("How long should I rest after a concussion?", "How long should I fast before a blood test?", False),
    ],
)
def test_a_question_in_nearly_the_same_words_is_the_same(one: str, other: str, same: bool) -> None:
    assert (_roots([one, other], 0.7) == [0, 0]) is same


def test_like_of_a_like_belongs_to_the_group() -> None:
    texts = ["abcdefghij", "abcdefghijkl", "abcdefghijklmn", "zzzzzzzz"]
    sets = [character_ngrams(text) for text in texts]
    assert jaccard(sets[0], sets[2]) < 0.7 <= jaccard(sets[0], sets[1])
    assert _roots(texts, 0.7) == [0, 0, 0, 3]


def test_texts_of_nothing_but_punctuation_are_all_the_same() -> None:
    assert _roots(["？", "！！", "abc"], 0.5) == [0, 0, 2]


@given(TEXTS, TEXTS, st.sampled_from([0.3, 0.7, 1.0]))
def test_a_text_is_found_exactly_when_some_reference_is_like_it(
    texts: list[str], references: list[str], threshold: float
) -> None:
    sets = [character_ngrams(comparable(text)) for text in references]
    like = {
        number: max(jaccard(character_ngrams(comparable(text)), other) for other in sets)
        for number, text in enumerate(texts)
        if sets
    }
    found = find_similar(texts, references, threshold)
    assert set(found) == {number for number, most in like.items() if most >= threshold}
    for number, reference in found.items():
        assert jaccard(character_ngrams(comparable(texts[number])), sets[reference]) == like[number]
