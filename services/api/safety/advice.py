"""What a sentence says of a drug that it names: takes its side, warns of it, leaves it to a doctor, or nothing.

A drug's name is read with the words of its own clause first, then with the clauses after it until another drug is named,
then with those before it. Names in one list (A、B和C) share their words. Words that reassure (不用担心, no need to stop) are
read before those that warn, because they are made of the same ones. The words are the policy's, in `advice.yaml`.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import re2

from services.api.safety.case import Case, Sentence
from services.api.safety.mentions import Mention, OfPolicy, mentions_of
from services.api.safety.policy import Policy
from services.api.safety.terms import expand

_LISTED = re2.compile(
    r"(?:[、/,+与和或及跟配加 ()]|以及|配合|搭配|联合|还有|或者|and|or|, and|with|along with|plus|alongside|"
    r"等药物|等|类药物|类|other|any|"
    r"the|also|both|片|胶囊|颗粒|钠|钾|的)*"
)
_SHORT = 10  # characters of a clause that is a bare No
_MARKS = ",;:!?。…"
# Words that lead in the name after them, so that what stands before them belongs to the name before.
_LEADS = re2.compile(
    r"而不是|不要|不能|避免|可以|可|首选|推荐|建议|选择|选用|选|换成|改成|换用|改用|改为|改吃|加用|加|配合|合用|吃|用|服用|服|打|涂|喝|"
    r"\b(?:but|take|use|try|start|to|add|with|instead of|rather than|avoid|switch|choose|while|whereas|have|prefer)\b"
)


class Stance(enum.Enum):
    """What is said of a drug."""

    FOR = "for"
    AGAINST = "against"
    LEFT = "left"  # asked, left to a doctor, or said of somebody else
    OPEN = "open"  # no word either way


@dataclass(frozen=True, slots=True)
class _Words:
    reassure: Any
    against: Any
    asked: Any
    deferred: Any
    favour: Any
    forbids: Any
    replaced_before: Any
    replaced_after: Any
    go: Any


@dataclass(frozen=True, slots=True)
class Reading:
    """One name in the sentence and what is said of it."""

    mention: Mention
    stance: Stance


class Advice:
    """Reads sentences with a policy's words. Immutable."""

    def __init__(self, words: _Words) -> None:
        self._words = words

    def read(self, text: str, mentions: Sequence[Mention]) -> list[Reading]:
        """The stance to each name in `text`."""
        groups = _groups(text, mentions)
        readings: list[Reading] = []
        earlier = 0
        for n, group in enumerate(groups):
            start, end = group[0].start, group[-1].end
            following = groups[n + 1][0].start if n + 1 < len(groups) else len(text)
            stop = _split(text, end, following) if n + 1 < len(groups) else following
            stance = self._stance(text, earlier, start, end, stop)
            readings.extend(Reading(mention, stance) for mention in group)
            earlier = stop
        return readings

    def goes_ahead(self, text: str) -> Stance:
        """What a text without a name says of a drug named before it: 每天三次, go ahead. OPEN: it is of something else."""
        stances = [self._decide(clause) for clause in _clauses(text) if clause.strip()]
        for stance in (Stance.AGAINST, Stance.LEFT):
            if stance in stances:
                return stance
        return Stance.FOR if self._words.go.search(text) else Stance.OPEN

    def without_reassurance(self, text: str) -> str:
        """不会中毒 warns of nothing."""
        return str(self._words.reassure.sub(" ", text))

    def refuses(self, text: str) -> bool:
        """It begins with a No to what was asked: 不建议, ...; No, ..."""
        first = _first_clause(text)
        return len(first) <= _SHORT and bool(self._words.against.search(self._words.reassure.sub(" ", first)))

    def is_asked(self, text: str) -> bool:
        return bool(self._words.asked.search(text))

    def warns(self, text: str) -> bool:
        """It warns, with what reassures left out."""
        return bool(self._words.against.search(self._words.reassure.sub(" ", text)))

    def _stance(self, text: str, left: int, start: int, end: int, right: int) -> Stance:
        before, after = text[left:start], text[end:right]
        near_before, near_after = _last_clause(before), _first_clause(after)
        if self._words.replaced_before.search(near_before) or self._words.replaced_after.search(text[end : end + 24]):
            return Stance.AGAINST
        near = self._decide(near_before + " " + near_after, lead=near_before)
        rest = _clauses(after)[1:]
        if near is Stance.FOR:
            taken_back = any(self._forbids(clause) for clause in rest)
            return Stance.AGAINST if taken_back else Stance.FOR
        if near is not Stance.OPEN:
            return near
        for clause in rest:
            said = self._decide(clause)
            if said is not Stance.OPEN:
                return said
        for clause in reversed(_clauses(before)[:-1]):
            said = self._decide(clause)
            if said is not Stance.OPEN:
                return said
        return Stance.OPEN

    def _decide(self, clause: str, lead: str = "") -> Stance:
        words = self._words
        if not clause.strip():
            return Stance.OPEN
        plain = words.reassure.sub(" ", clause)
        if words.asked.search(plain):
            return Stance.LEFT
        if words.against.search(plain):
            return Stance.AGAINST
        if words.deferred.search(plain):
            return Stance.LEFT
        reassured = plain != clause
        return Stance.FOR if reassured or words.favour.search(plain) or words.favour.search(lead) else Stance.OPEN

    def _forbids(self, clause: str) -> bool:
        return bool(self._words.forbids.search(self._words.reassure.sub(" ", clause)))


@dataclass(slots=True)
class Spoken:
    """What one sentence says of drugs. `carried` are those it speaks for without naming them: they were named before it."""

    readings: list[Reading] = field(default_factory=list)
    carried: list[Mention] = field(default_factory=list)
    text_stance: Stance = Stance.OPEN

    @property
    def recommended(self) -> list[Mention]:
        """Named and spoken for."""
        return [reading.mention for reading in self.readings if reading.stance is Stance.FOR]


_KEPT = "drugs_spoken_of"


def spoken(sentence: Sentence, case: Case) -> Spoken:
    """What the sentence says of drugs, and of those under discussion since the question; read once for all rules."""
    kept: dict[Any, Any] = case.data.setdefault(_KEPT, {})
    place = (sentence.part, sentence.start)
    if place not in kept:
        topics = kept.setdefault(("topics", sentence.part), _asked_about(case))
        kept[place] = _spoken(sentence, case.policy, topics)
        kept["topics", sentence.part] = _next_topics(kept[place], topics)
    found: Spoken = kept[place]
    return found


def _spoken(sentence: Sentence, policy: Policy, topics: list[Mention]) -> Spoken:
    advice = advice_of(policy)
    mentions = mentions_of(policy).find(sentence.text)
    readings = advice.read(sentence.text, mentions) if mentions else []
    if readings and topics and advice.refuses(sentence.text):
        asked = {mention.key for mention in topics}
        readings = [Reading(r.mention, Stance.AGAINST) if r.mention.key in asked else r for r in readings]
    if any(mention.substance is None for mention in mentions):
        return Spoken(readings)
    stance = advice.goes_ahead(sentence.text) if topics else Stance.OPEN
    return Spoken(readings, topics if stance is Stance.FOR else [], stance)


def _asked_about(case: Case) -> list[Mention]:
    """The drugs in the message that is being answered."""
    question = case.question
    return mentions_of(case.policy).find(question.text) if question else []


def _next_topics(said: Spoken, topics: list[Mention]) -> list[Mention]:
    named = [reading for reading in said.readings if reading.mention.substance is None]
    if named:
        return [reading.mention for reading in named if reading.stance in (Stance.OPEN, Stance.FOR)]
    return [] if said.text_stance is Stance.AGAINST else topics


_TERMS = ("reassure", "against", "asked", "deferred", "for", "forbids", "replaced-before", "replaced-after", "go")


@functools.lru_cache(maxsize=4)
def advice_of(policy: Policy) -> Advice:
    """A policy's reader, compiled once."""
    return _compiled(OfPolicy(policy.digest, policy))


@functools.lru_cache(maxsize=4)
def _compiled(key: OfPolicy) -> Advice:
    return Advice(_Words(*(words_of(key.policy, f"advice-{name}") for name in _TERMS)))


def words_of(policy: Policy, term_id: str) -> Any:
    """One pattern of all those of a term that is read by clause."""
    options = re2.Options()
    options.max_mem = 64 << 20
    options.log_errors = False
    patterns = [pattern for combination in policy.terms[term_id].any_of for pattern in combination]
    return re2.compile("|".join(f"(?:{expand(pattern, {})})" for pattern in patterns), options)


def _groups(text: str, mentions: Sequence[Mention]) -> list[list[Mention]]:
    """Names with nothing but list words between them stand together."""
    groups: list[list[Mention]] = []
    for mention in mentions:
        if groups and _LISTED.fullmatch(text[groups[-1][-1].end : mention.start]):
            groups[-1].append(mention)
        else:
            groups.append([mention])
    return groups


def _split(text: str, end: int, following: int) -> int:
    """Where, between two names, the words of the first end: at the last clause mark, else before what leads in the second."""
    between = text[end:following]
    mark = max(between.rfind(mark) for mark in _MARKS)
    if mark >= 0:
        return end + mark + 1
    leads = [match.start() for match in _LEADS.finditer(between)]
    return end + leads[0] if leads else following


def _clauses(text: str) -> list[str]:
    clauses, start = [], 0
    for n, character in enumerate(text):
        if character in _MARKS:
            clauses.append(text[start : n + 1])
            start = n + 1
    return [*clauses, text[start:]]


def _first_clause(text: str) -> str:
    return _clauses(text)[0]


def _last_clause(text: str) -> str:
    return _clauses(text)[-1]
