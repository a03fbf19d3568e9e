"""Someone has an emergency now and the answer does not send them to urgent care, or talks them out of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from services.api.safety.case import Case, Said, Sentence
from services.api.safety.facts import assess_facts, facts_of
from services.api.safety.rules import laboratory
from services.api.safety.terms import Find
from services.api.safety.verdicts import Hit, Verdict

FLAG, CONCLUDED, URGENT, DISCOURAGED = "red_flag", "reply_flag", "urgent", "discourage"
_JOINED = 700  # characters of all that the user said, read as one: an illness told in pieces
_CONTRASTS = ("但", "不过", "其实", "but ", "though", "however")


@dataclass(slots=True)
class _Known:
    """What this rule has learnt of one case."""

    flags: list[str] = field(default_factory=list)  # the ids of the terms that show the emergency
    urgent: bool = False  # adequate advice has come in the answer
    exempt: bool = False  # nobody is ill now, or they are in good hands


class MissingEmergencyAdvice:
    """Red flags that are active now, told by the user or concluded by the reply, against what the answer advises."""

    name = "missing_emergency_advice"

    def assess(self, case: Case) -> None:
        """Looks for red flags in all that the user said; sets `red_flag_input`, which the streaming gate reads."""
        assess_facts(case)
        known = self._known(case)
        question = case.question
        if question is None:
            return
        known.exempt = not _speaks_of_a_patient(question) or "seen" in _tempo(question)
        if known.exempt and _is_closed(question):
            return
        told = [said for said in case.users if _speaks_of_a_patient(said)]
        for said in told:
            known.flags.extend(_flags(said, case))
        if len(told) > 1 and not known.flags:
            known.flags.extend(_flags_together(told, case))
        if known.flags:
            known.exempt = False
            case.facts.add("red_flag_input")

    def judge(self, sentence: Sentence, case: Case) -> Iterator[Hit]:
        """Blocks at once what talks somebody with a red flag out of care; notes conclusions and advice."""
        known = self._known(case)
        advised = known.urgent
        if sentence.part == "answer":
            if sentence.active(URGENT) or _advises_for(sentence, known.flags):
                known.urgent = True
                case.facts.add("urgent_advice")
            if not known.exempt:
                known.flags.extend(_concluded(sentence, case))
        if not known.flags:
            return
        for find in sentence.active(DISCOURAGED):
            if _stands(find, sentence, advised):
                yield sentence.hit(self.name, Verdict.BLOCK, find)
                return

    def end(self, case: Case) -> Iterable[Hit]:
        """Amends when there is a flag and no clear, unconditional advice in the answer."""
        known = self._known(case)
        if known.flags and not known.urgent:
            return [Hit(self.name, Verdict.AMEND, known.flags[0], "answer", 0, 0)]
        return []

    def _known(self, case: Case) -> _Known:
        known = case.data.setdefault(self.name, _Known())
        assert isinstance(known, _Known)
        return known


def _tempo(said: Said) -> frozenset[str]:
    return frozenset(str((find.term.data or {})["tempo"]) for find in said.active("tempo"))


def _is_closed(question: Said) -> bool:
    """The last message itself says that nothing is open: taught, professional, in care or seen."""
    return bool(facts_of(question)) or "seen" in _tempo(question)


def _speaks_of_a_patient(said: Said) -> bool:
    """Somebody who is ill now and in nobody's hands yet: no lesson, no colleague's inpatient, no old story."""
    facts, tempo = facts_of(said), _tempo(said)
    if "teaching" in facts or "under_care" in facts:
        return False
    if {"clinician", "patient_of_theirs"} <= facts:
        return False
    return not ("past" in tempo and "well" in tempo and "acute" not in tempo)


def _flags(said: Said, case: Case) -> list[str]:
    """The terms that show an emergency in one message, critical values among them."""
    finds = _find(said.text, case)
    found = [find.term.id for find in finds if find.term.group == FLAG and find.is_active]
    return found + _critical(said.text, finds, case)


def _find(text: str, case: Case) -> Sequence[Find]:
    """The finds of a text, with those terms that need what is known of the person."""
    return case.policy.matcher.find_again(text, frozenset(case.facts)) if case.policy else []


def _flags_together(told: Iterable[Said], case: Case) -> list[str]:
    text = "。".join(said.text for said in told)[-_JOINED:]
    finds = _find(text, case)
    return [find.term.id for find in finds if find.term.group == FLAG and find.is_active]


def _critical(text: str, finds: Iterable[Find], case: Case) -> list[str]:
    finds = list(finds)
    values = [
        value
        for find in finds
        if find.term.group == laboratory.GROUP and find.is_active and (value := laboratory.read_value(text, find))
    ]
    if not values:
        return []
    symptoms = any(find.term.group == "lab_symptom" and find.is_active for find in finds)
    return [value.find.term.id for value in values if laboratory.is_critical(value, case.facts, symptoms)]


def _concluded(sentence: Sentence, case: Case) -> list[str]:
    """What the answer itself says is there."""
    found = [find.term.id for find in sentence.active(CONCLUDED)]
    return found + _critical(sentence.text, sentence.finds, case)


def _advises_for(sentence: Sentence, flags: list[str]) -> bool:
    """Advice for a case that is the present one: 如果他没有反应, said of a man who is unconscious."""
    conditional = [find for find in sentence.of_group(URGENT) if find.scopes & find.term.passes == {"advice_if"}]
    return bool(conditional) and any(find.term.id in flags for find in sentence.of_group(FLAG))


def _stands(find: Find, sentence: Sentence, advised: bool) -> bool:
    """Advice to stay away counts unless urgent advice stands beside it: who is sent now may still be told of tomorrow."""
    if not sentence.active(URGENT):
        return not advised or not (find.term.data or {}).get("delay")
    return any(contrast in sentence.text[: find.start] for contrast in _CONTRASTS)
