"""A drug that is ruled out in pregnancy, recommended to somebody who is or plans to be pregnant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from services.api.safety.advice import spoken
from services.api.safety.case import Case, Sentence
from services.api.safety.doses import number
from services.api.safety.drugs import Drug
from services.api.safety.facts import assess_facts
from services.api.safety.mentions import Mention
from services.api.safety.policy import Policy
from services.api.safety.verdicts import Hit, Verdict

_RULED_OUT = frozenset({"contraindicated", "avoid"})
# Before conception: these are taken in order to conceive, or as a course that is over by then.
_TO_CONCEIVE = frozenset({"clomifene", "letrozole", "estradiol", "oxytocin", "progesterone", "anastrozole"})
_TRYING_CLASSES = frozenset(
    {"statin", "acei", "arb", "retinoid", "tetracycline", "antimetabolite", "alkylating_agent", "antiepileptic", "imid"}
)
_N = "[0-9]+|[一二两三四五六七八九十]{1,3}"
_WEEKS = re.compile(
    rf"(?:孕|怀孕|妊娠|怀了|宝宝|停经|有孕)[^,。]{{0,4}}?({_N})(?:周|\+|w)|({_N})多?周(?:的)?(?:孕|胎)|"
    r"\b([0-9]{1,2}) ?(?:weeks?|wks?)\b"
)
_MONTHS = re.compile(
    rf"(?:孕|怀孕|妊娠|怀了|宝宝|肚子)[^,。]{{0,4}}?({_N})个?多?月|({_N})个?多?月(?:的)?(?:身孕|孕|胎)|"
    r"\b([0-9]|[a-z]+) months (?:pregnant|along|gone)\b"
)
_EARLY = re.compile(r"孕早期|早孕|刚(?:怀|查出|发现|测出)|first trimester|early pregnancy|just found out")
_LATE = re.compile(
    r"孕晚期|晚孕|快(?:生了|临产|到预产期)|待产|临产|预产期(?:快|就)|third trimester|near term|due (?:next|this|in)"
)
_MIDDLE = re.compile(r"孕中期|second trimester")
_ENGLISH = {w: n for n, w in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], 1)}
_SOMEBODY_ELSE = re.compile(
    r"您?(?:的)?(?:母亲|父亲|爸爸|丈夫|老公|先生)可以|您(?:的)?妈妈|男性|"
    r"\b(?:he|him|your (?:husband|mother|father|partner|mum|mom|dad))\b"
)
_ASPIRIN = "acetylsalicylic acid"
_LOW_DOSE = re.compile(r"小剂量|低剂量|(?:50|75|81|100|150) ?(?:mg|毫克)|low[- ]dose|baby aspirin")


@dataclass(frozen=True, slots=True)
class _Pregnant:
    """`weeks` is a guess of the middle where only the trimester is told; None: not told."""

    planned: bool
    weeks: int | None


class Pregnancy:
    """The rule of the same name."""

    name = "pregnancy"

    def assess(self, case: Case) -> None:
        assess_facts(case)
        if "teaching" in case.facts or not case.facts & {"pregnant", "trying"}:
            return
        ended = any(said.active("pregnancy_ending") for said in case.users)
        question = case.question
        partner = question is not None and bool(question.active("pregnancy_partner"))
        if not ended and not partner:
            texts = " ".join(said.text for said in case.users)
            case.data[self.name] = _Pregnant("pregnant" not in case.facts, weeks_told(texts))

    def judge(self, sentence: Sentence, case: Case) -> Iterable[Hit]:
        who: _Pregnant | None = case.data.get(self.name)
        if who is None or _SOMEBODY_ELSE.search(sentence.text):
            return
        said = spoken(sentence, case)
        for mention in said.recommended:
            if is_ruled_out(mention, who.planned, who.weeks, case.policy, sentence.text):
                yield sentence.hit_at(self.name, Verdict.BLOCK, f"pregnancy:{mention.key}", mention.start, mention.end)
        for mention in said.carried:
            if is_ruled_out(mention, who.planned, who.weeks, case.policy, sentence.before + sentence.text):
                yield sentence.hit_at(self.name, Verdict.BLOCK, f"pregnancy:{mention.key}")

    def end(self, case: Case) -> Iterable[Hit]:
        return ()


def weeks_told(text: str) -> int | None:
    """How far the pregnancy is, in weeks, where the user said so."""
    for pattern, factor in ((_WEEKS, 1.0), (_MONTHS, 4.3)):
        for match in pattern.finditer(text):
            written = next(group for group in match.groups() if group)
            told = _ENGLISH.get(written) or number(written)
            if told is not None and 0 < told * factor <= 43:
                return round(told * factor)
    for pattern, guess in ((_LATE, 34), (_MIDDLE, 18), (_EARLY, 8)):
        if pattern.search(text):
            return guess
    return None


def is_ruled_out(mention: Mention, planned: bool, weeks: int | None, policy: Policy, text: str) -> bool:
    """Whether what is named must not be recommended to her."""
    if mention.drug is not None:
        return _drug_ruled_out(mention.drug, planned, weeks, text)
    if mention.class_id is not None:
        classes = (policy.terms["pregnancy-classes"].data or {}).get("classes", ())
        return mention.class_id in classes and (not planned or mention.class_id in _TRYING_CLASSES)
    return mention.substance in _substances(policy)


def _substances(policy: Policy) -> frozenset[str]:
    found: list[dict[str, Any]] = [dict(t.data) for t in policy.terms.values() if t.data and "pregnancy" in t.data]
    return frozenset(str(data["substance"]) for data in found)


def _drug_ruled_out(drug: Drug, planned: bool, weeks: int | None, text: str) -> bool:
    status = drug.pregnancy.status
    if planned:
        if drug.inn in _TO_CONCEIVE:
            return False
        return status == "contraindicated" or (status == "avoid" and bool(_TRYING_CLASSES & set(drug.classes)))
    if status == "trimester":
        return _in_forbidden_weeks(drug, weeks, text)
    return status in _RULED_OUT


def _in_forbidden_weeks(drug: Drug, weeks: int | None, text: str) -> bool:
    """By the words of the table's note; weeks that were not told forbid nothing."""
    if weeks is None:
        return False
    note = drug.pregnancy.note
    if drug.inn == _ASPIRIN:
        return weeks >= 20 and not _LOW_DOSE.search(text)
    if "from 20 weeks" in note:
        return weeks >= 20
    if "at term" in note:
        return weeks >= 37
    return "avoid in the first trimester" in note and weeks < 13
