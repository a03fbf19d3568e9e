"""What is known about one conversation and the reply to it while the reply is checked: mutable, per choice, short-lived."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.api.safety.normalise import Normalised, normalise
from services.api.safety.policy import Policy
from services.api.safety.terms import Find
from services.api.safety.verdicts import Hit, Part, Verdict

# Groups of terms that rules read in the user's words alone; red flags in a reply only where the user told of some.
OF_USERS = frozenset({"fact", "tempo", "self_harm_risk", "injection_attempt", "pregnancy_ending", "pregnancy_partner"})
OF_USERS_AND_FLAGS = OF_USERS | {"red_flag"}

_CHINESE = re.compile(r"[\u3400-\u9fff]")
LONGEST_INPUT = 4000  # characters of a message that are assessed, half from each end
_TAIL = 160  # characters of what came before that a sentence is read with


@dataclass(frozen=True, slots=True)
class Said:
    """A message of the conversation, as the rules see it. `age` 0 is the message that is being answered."""

    role: str
    norm: Normalised
    finds: Sequence[Find]
    age: int

    @property
    def text(self) -> str:
        return self.norm.text

    def active(self, group: str) -> list[Find]:
        return [find for find in self.finds if find.term.group == group and find.is_active]


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of the reply. `start` is its first character's place in its part's original text.

    `before` is the normalised end of what came before it in the same part: a claim may stretch over a forced cut, and
    words such as "it" point back.
    """

    part: Part
    original: str
    start: int
    norm: Normalised
    finds: Sequence[Find]
    before: str = ""

    @property
    def text(self) -> str:
        return self.norm.text

    def active(self, group: str) -> list[Find]:
        return [find for find in self.finds if find.term.group == group and find.is_active]

    def of_group(self, group: str) -> list[Find]:
        return [find for find in self.finds if find.term.group == group]

    def hit(self, rule: str, verdict: Verdict, find: Find) -> Hit:
        """A hit of this sentence, with the find's place in the original part."""
        return self.hit_at(rule, verdict, find.term.id, find.start, find.end)

    def hit_at(self, rule: str, verdict: Verdict, term: str, start: int = 0, end: int | None = None) -> Hit:
        """A hit at normalised characters `start` to `end`; the whole sentence without them."""
        first, last = self.norm.span(start, len(self.text) if end is None else end)
        return Hit(rule, verdict, term, self.part, self.start + first, self.start + last)


@dataclass(slots=True)
class Case:
    """One conversation and the reply to it. Rules keep what they learn in `facts` and under their own name in `data`."""

    policy: Policy  # the article's profile has none, and asks for none
    said: list[Said]
    language: str
    system_prompt: str | None = None
    facts: set[str] = field(default_factory=set)
    data: dict[str, Any] = field(default_factory=dict)
    reply: list[Sentence] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)

    @property
    def users(self) -> list[Said]:
        """The user's messages, oldest first."""
        return [said for said in self.said if said.role == "user"]

    @property
    def question(self) -> Said | None:
        """The message that is being answered."""
        return next((said for said in reversed(self.said) if said.role == "user"), None)

    @property
    def answer(self) -> list[Sentence]:
        return [sentence for sentence in self.reply if sentence.part == "answer"]


class Rule(Protocol):
    """One rule of the policy. Holds no state of a request: that is in the case."""

    name: str

    def assess(self, case: Case) -> None:
        """Reads the conversation before the first token: sets facts, keeps what `judge` will need."""

    def judge(self, sentence: Sentence, case: Case) -> Iterable[Hit]:
        """What this sentence breaks, with all earlier ones (`case.reply`) in view. It is not yet among them."""

    def end(self, case: Case) -> Iterable[Hit]:
        """What the whole reply lacks, when it is over."""


def open_case(policy: Policy, messages: Sequence[tuple[str, str]], system_prompt: str | None = None) -> Case:
    """A case for (role, text) messages, oldest first. The finds of every message are made here, the rules read them."""
    said = []
    turns = sum(role == "user" for role, _ in messages)
    for role, text in messages:
        turns -= role == "user"
        norm = normalise(_ends(text))
        said.append(Said(role, norm, policy.matcher.find_again(norm.text), max(turns, 0)))
    texts = [s.text for s in said if s.role == "user"]
    return Case(policy, said, language_of(texts[-1] if texts else ""), system_prompt)


def read_sentence(case: Case, part: Part, original: str, start: int) -> Sentence:
    """A sentence of the reply with its finds."""
    norm = normalise(original)
    earlier = next((s for s in reversed(case.reply) if s.part == part), None)
    before = (earlier.before + earlier.text)[-_TAIL:] if earlier else ""
    skipped = OF_USERS if "red_flag_input" in case.facts else OF_USERS_AND_FLAGS
    finds = case.policy.matcher.find(norm.text, frozenset(case.facts), skipped)
    return Sentence(part, original, start, norm, finds, before)


def language_of(text: str) -> str:
    """`zh` when a tenth of the letters or more are Chinese characters: names of drugs and units are Latin anywhere."""
    chinese = len(_CHINESE.findall(text))
    letters = sum(character.isalpha() for character in text)
    return "zh" if chinese * 10 >= letters and (chinese or not letters) else "en"


def _ends(text: str) -> str:
    if len(text) <= LONGEST_INPUT:
        return text
    half = LONGEST_INPUT // 2
    return text[:half] + "\n" + text[-half:]
