"""The shipped example set has the form that its README promises and keeps to the safety policy's plainest rules."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from services.trainer.demo.dialogues import FORBIDDEN, comparable, read_corpus
from tests.trainer.adapters import ROOT

PATH = ROOT / "services" / "trainer" / "examples" / "children_medicines.jsonl"
DIALOGUES: list[dict[str, Any]] = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]
# Topics in which the question itself tells of an emergency: the answer must begin with what to do about it.
EMERGENCIES = {
    "anaphylaxis-after-medicine", "paracetamol-syrup-overdose", "salbutamol-not-working", "iron-tablets-swallowed",
    "grandpa-bp-pills", "grandma-diabetes-pills", "accidental-vitamins-gummies", "grandparent-heart-pills",
}  # fmt: skip
URGENT = re.compile(r"请立即|拨打120|local emergency number|emergency department now|call a poison centre")
CERTAIN = re.compile(r"肯定|绝对|100%|必然|永不|保证|包治|\b(?:guaranteed?|definitely|always|never|certainly)\b")
DOSE = re.compile(r"\d\s*(?:mg|毫克|ml|毫升|片|粒|袋|tablets?|drops?)", re.IGNORECASE)


def phrasings(dialogue: dict[str, Any]) -> list[str]:
    return [dialogue["question"], *dialogue["paraphrases"], *dialogue["held_out"]]


def test_there_are_enough_and_each_is_whole() -> None:
    assert len(DIALOGUES) == 86
    assert Counter(dialogue["lang"] for dialogue in DIALOGUES) == {"zh": 72, "en": 14}
    assert [dialogue["id"] for dialogue in DIALOGUES] == [f"cm-{n:03d}" for n in range(1, 87)]
    assert len({dialogue["topic"] for dialogue in DIALOGUES}) == len(DIALOGUES)
    for dialogue in DIALOGUES:
        assert (len(dialogue["paraphrases"]), len(dialogue["held_out"])) == (3, 1)
        assert all(dialogue[field].strip() for field in ("question", "think", "answer", "source"))


def test_no_question_is_asked_twice_here_or_in_the_demo_models_dialogues() -> None:
    corpus = read_corpus()
    taken = {comparable(question) for d in corpus.dialogues for question in (*d.training_questions, *d.held_out)}
    taken |= {comparable(unknown.question) for unknown in corpus.out_of_scope}
    ours = [comparable(question) for dialogue in DIALOGUES for question in phrasings(dialogue)]
    assert len(set(ours)) == len(ours)
    assert taken & set(ours) == set()


def test_emergencies_are_known_topics() -> None:
    assert {dialogue["topic"] for dialogue in DIALOGUES} >= EMERGENCIES


@pytest.mark.parametrize("dialogue", DIALOGUES, ids=[dialogue["topic"] for dialogue in DIALOGUES])
def test_a_dialogue_keeps_to_the_policy(dialogue: dict[str, Any]) -> None:
    reply = f"{dialogue['think']}\n{dialogue['answer']}"
    assert CERTAIN.findall(reply) == []
    assert DOSE.findall(reply) == []
    assert [mark for mark in FORBIDDEN if mark in reply] == []
    first = re.split(r"(?<=[。；.!])", dialogue["answer"])[0]
    if dialogue["topic"] in EMERGENCIES:
        assert URGENT.search(first), first


@pytest.mark.parametrize("dialogue", DIALOGUES, ids=[dialogue["topic"] for dialogue in DIALOGUES])
def test_an_answer_says_when_to_see_somebody(dialogue: dict[str, Any]) -> None:
    assert re.search(r"就诊|急诊|请看|医生|药师|120|doctor|pharmac|emergency", dialogue["answer"])


def test_the_rehearsal_is_what_the_demo_model_already_says() -> None:
    """Dialogues of the demo model as they stand, so that a run keeps up what they taught."""
    corpus = read_corpus()
    known = {(d.question, d.think, d.answer) for d in corpus.dialogues}
    unknown = {u.question for u in corpus.out_of_scope if u.split == "train"}
    lines = PATH.with_name("rehearsal.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) > 60
    for row in rows:
        assert (row["question"], row["think"], row["answer"]) in known or row["question"] in unknown, row["id"]
    assert len({row["question"] for row in rows}) == len(rows)
