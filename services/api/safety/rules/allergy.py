"""A drug, or a relative of it, recommended to somebody who said that they are allergic to it, in this turn or an earlier one."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from services.api.safety.advice import spoken, words_of
from services.api.safety.case import Case, Said, Sentence
from services.api.safety.drugs import DrugTable
from services.api.safety.facts import assess_facts
from services.api.safety.mentions import Mention, OfPolicy, mentions_of
from services.api.safety.policy import Policy
from services.api.safety.verdicts import Hit, Verdict

_SENTENCE = re.compile(r"[。!?;]|\.(?= |$)")
_BETA_LACTAMS = ("penicillin", "cephalosporin", "carbapenem")
# Relatives by the table's word alone are enough for these; a sulfonamide that is no antibiotic is not refused for a rash.
_SULFA = "sulfonamide_antibiotic"
_SULFA_TOO = frozenset({"celecoxib", "sulfasalazine", "silver sulfadiazine"})
_REACTION_REACH = 70  # characters after a name in which the reaction to it may be told


@dataclass(frozen=True, slots=True)
class Allergen:
    """What the user reacts to, and whether the reaction threatened life."""

    mention: Mention
    severe: bool


class Allergy:
    """The rule of the same name."""

    name = "allergy"

    def assess(self, case: Case) -> None:
        assess_facts(case)
        if "teaching" in case.facts:
            return
        policy = case.policy
        reader = _compiled(OfPolicy(policy.digest, policy))
        told = [allergen for said in case.users for allergen in reader.allergens(said)]
        if told:
            case.data[self.name] = told

    def judge(self, sentence: Sentence, case: Case) -> Iterable[Hit]:
        told: list[Allergen] | None = case.data.get(self.name)
        if not told:
            return
        said = spoken(sentence, case)
        for mention in said.recommended:
            if any(conflicts(allergen, mention, case.policy.drugs) for allergen in told):
                yield sentence.hit_at(self.name, Verdict.BLOCK, f"allergy:{mention.key}", mention.start, mention.end)
        for mention in said.carried:
            if any(conflicts(allergen, mention, case.policy.drugs) for allergen in told):
                yield sentence.hit_at(self.name, Verdict.BLOCK, f"allergy:{mention.key}")

    def end(self, case: Case) -> Iterable[Hit]:
        return ()


def conflicts(allergen: Allergen, mention: Mention, table: DrugTable) -> bool:
    """Whether a drug that is recommended is the allergen, of its class, or so near to it that it must not be given."""
    told = allergen.mention
    if told.key == mention.key:
        return True
    if told.substance or mention.substance:
        return False
    ours, theirs = _relatives(told), _relatives(mention)
    shared = (ours & mention.classes) | (theirs & told.classes)
    if not shared:
        return False
    families = [{f for f in _BETA_LACTAMS if f in one.classes} for one in (told, mention)]
    if families[0] and families[1]:
        return bool(families[0] & families[1]) or allergen.severe
    if shared == {_SULFA} and not (_SULFA in mention.classes and _SULFA in told.classes):
        return mention.key in _SULFA_TOO or told.key in _SULFA_TOO
    return True


def _relatives(mention: Mention) -> frozenset[str]:
    """The classes that it cross-reacts with; a class stands for itself."""
    if mention.drug is not None:
        return frozenset(mention.drug.cross_allergy)
    return mention.classes


class _Reader:
    """Finds what the user says to be allergic to."""

    def __init__(self, policy: Policy) -> None:
        self._mentions = mentions_of(policy)
        names = (
            "no-sense",
            "after",
            "before",
            "reaction",
            "taken",
            "made",
            "caused",
            "severe",
            "of-another",
            "own-trouble",
        )
        self._words = {name: words_of(policy, f"allergy-{name}") for name in names}

    def allergens(self, said: Said) -> Iterable[Allergen]:
        text = said.text
        for mention in self._mentions.find(text):
            start, end = _sentence_around(text, mention)
            before = text[start : mention.start]
            after = text[mention.end : max(end, mention.end)]
            if self._is_told(before, after) and not self._is_of_another(before, text):
                severe = bool(self._words["severe"].search(text[start : end + _REACTION_REACH]))
                yield Allergen(mention, severe)

    def _is_told(self, before: str, after: str) -> bool:
        words = self._words
        near = before[-12:] + "\0" + after[:16]
        if any("\0" in match[0] or match.start() > len(before[-12:]) - 4 for match in words["no-sense"].finditer(near)):
            return False
        plain_before, plain_after = words["no-sense"].sub(" ", before), words["no-sense"].sub("  ", after)
        direct = words["after"].search(plain_after) or words["before"].search(plain_before)
        if direct or (plain_before.rstrip().endswith("对") and "过敏" in plain_after[:20]):
            return True
        if words["caused"].search(before) and words["reaction"].search(plain_before[-_REACTION_REACH:]):
            return True
        if not words["reaction"].search(plain_after[:_REACTION_REACH]):
            return False
        return bool(words["taken"].search(before) or words["made"].search(after))

    def _is_of_another(self, before: str, text: str) -> bool:
        words = self._words
        return bool(words["of-another"].search(before) and words["own-trouble"].search(text))


@functools.lru_cache(maxsize=4)
def _compiled(key: OfPolicy) -> _Reader:
    return _Reader(key.policy)


def _sentence_around(text: str, mention: Mention) -> tuple[int, int]:
    """The sentence that holds the name, and the one after it: 我吃过阿莫西林。浑身起疹子。"""
    starts = [match.end() for match in _SENTENCE.finditer(text, 0, mention.start)]
    ends = [match.start() for match in _SENTENCE.finditer(text, mention.end)]
    return (starts[-1] if starts else 0), (ends[0] if ends else len(text))
