"""Blocks a reply that recommends, sells or explains how to get a treatment that is not approved for that use.

A name is no verdict: it may be named to explain it or to warn of it. The rule asks for an offer of what is named, here or shortly
before, and lets pass what the reply has advised against, has called unproven, or has told to be licensed or registered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from services.api.safety.case import Case, Sentence
from services.api.safety.terms import Find
from services.api.safety.verdicts import Hit, Verdict

_NAMES = "unapproved"
_LOOKED_BACK = 2  # sentences in which a therapy that "it" points to may have been named
_AS_TREATMENT = re.compile(
    r"治|疗|注射|回输|输|针|打|液|therap|treat|inject|infus|drip|clinic|patient", re.IGNORECASE
)  # a biology lesson says what cells do, too


class UnapprovedTherapy:
    """What is named, whether it is offered, and whether the reply takes it back."""

    name = "unapproved_therapy"

    def assess(self, case: Case) -> None:
        """Keeps whether the user named such a therapy: "it" of the reply points there."""
        question = case.question
        case.data[self.name] = question is not None and any(find.term.group == _NAMES for find in question.finds)

    def judge(self, sentence: Sentence, case: Case) -> Iterable[Hit]:
        names = sentence.active(_NAMES)
        sells = sentence.active("unapproved_sell")
        offers = [*sells, *sentence.active("unapproved_offer"), *_praises(sentence, names)]
        if not offers:
            return ()
        told = [earlier for earlier in case.reply if earlier.part == sentence.part]
        if not names:
            names = self._pointed_at(sentence, case, told, sells, offers)
        if not names or self._is_taken_back(sentence, told, names, sells):
            return ()
        return [sentence.hit(self.name, Verdict.BLOCK, find) for find in names]

    def end(self, case: Case) -> Iterable[Hit]:
        return ()

    def _pointed_at(
        self, sentence: Sentence, case: Case, told: Sequence[Sentence], sells: Sequence[Find], offers: Sequence[Find]
    ) -> list[Find]:
        """The offer itself, when it is one of something that was named before."""
        named = any(earlier.active(_NAMES) for earlier in told[-_LOOKED_BACK:])
        if not named and not (case.data.get(self.name) and not told[_LOOKED_BACK:]):
            return []
        if sells:
            return list(sells[:1])
        return list(offers[:1]) if sentence.active("unapproved_points") else []

    def _is_taken_back(
        self, sentence: Sentence, told: Sequence[Sentence], names: Sequence[Find], sells: Sequence[Find]
    ) -> bool:
        here = [find for find in sentence.active("unapproved_against") if not _overlaps(find, names)]
        against = bool(here) or any(earlier.active("unapproved_against") for earlier in told)
        if against and sells and sentence.active("unapproved_contrast"):
            return all(find.start < here[0].start for find in sells) if here else False
        approved = sentence.active("unapproved_approved") or any(
            earlier.active("unapproved_approved") for earlier in told[-_LOOKED_BACK:]
        )
        return against or bool(approved)


def _praises(sentence: Sentence, names: Sequence[Find]) -> list[Find]:
    """What is said to work. Of cells and genes it may be biology, unless a treatment is spoken of."""
    praises = sentence.active("unapproved_praise")
    if praises and names and all((find.term.data or {}).get("biology") for find in names):
        return praises if _AS_TREATMENT.search(sentence.text) else []
    return praises


def _overlaps(find: Find, others: Sequence[Find]) -> bool:
    return any(find.start < other.end and other.start < find.end for other in others)
