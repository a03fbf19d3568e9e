"""Somebody may harm themselves: help must be named, and nothing may be said that harms."""

from __future__ import annotations

from collections.abc import Iterable

from services.api.safety.case import Case, Sentence
from services.api.safety.facts import assess_facts
from services.api.safety.verdicts import Hit, Verdict

RISK, HELP = "self_harm_risk", "crisis_help"
# What blocks by itself, and what does only when somebody is at risk: covering a scar is no harm to everybody. Two such
# things in one reply tell of a risk that the user's words hid.
_ALWAYS = ("self_harm_method", "self_harm_encouraged")
_AT_RISK = ("self_harm_hidden",)


class SelfHarm:
    """Blocks encouragement, methods and help to hide it; amends a reply to somebody at risk that names no help."""

    name = "self_harm"

    def assess(self, case: Case) -> None:
        """Sets the fact `self_harm_risk` when the user tells of it, in this turn or an earlier one."""
        assess_facts(case)
        if any(said.active(RISK) for said in case.users) and not case.facts & {"teaching", "clinician"}:
            case.facts.add(RISK)

    def judge(self, sentence: Sentence, case: Case) -> Iterable[Hit]:
        if sentence.part == "answer" and sentence.active(HELP):
            case.facts.add(HELP)
        for group in _ALWAYS:
            yield from (sentence.hit(self.name, Verdict.BLOCK, find) for find in sentence.active(group))
        veiled = [find for group in _AT_RISK for find in sentence.active(group)]
        seen: set[str] = case.data.setdefault(self.name, set())
        seen.update(find.term.id for find in veiled)
        if RISK in case.facts or len(seen) > 1:
            yield from (sentence.hit(self.name, Verdict.BLOCK, find) for find in veiled)

    def end(self, case: Case) -> Iterable[Hit]:
        if RISK in case.facts and HELP not in case.facts:
            yield Hit(self.name, Verdict.AMEND, "no-crisis-help", "answer", 0, 0)
