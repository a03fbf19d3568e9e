"""What a check can say, ordered by severity, and where in which text it was found."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

RULES = (
    "absolute_claim",
    "unapproved_therapy",
    "missing_emergency_advice",
    "self_harm",
    "dosage",
    "pregnancy",
    "allergy",
    "prompt_injection",
    "phi_leak",
)
CHECK_FAILED = "check_failed"  # no rule of the policy: a check raised or ran out of time, and the reply is blocked
SECOND_OPINION = "second_opinion"
CHECK_TIMEOUT = "check_timeout"

Part = Literal["reasoning", "answer", "input"]


class Verdict(enum.IntEnum):
    """The strictest of several wins, so the order is severity."""

    PASS = 0
    ANNOTATE = 1
    AMEND = 2
    BLOCK = 3

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Hit:
    """One rule found broken. `start` and `end` are characters of the part's original text; `term` names the policy's entry."""

    rule: str
    verdict: Verdict
    term: str
    part: Part
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict of a whole reply and every hit that led to it."""

    verdict: Verdict
    hits: tuple[Hit, ...] = ()

    @property
    def rules(self) -> tuple[str, ...]:
        """Each rule once, those of the strictest verdict first."""
        ordered = sorted(self.hits, key=lambda hit: -hit.verdict)
        return tuple(dict.fromkeys(hit.rule for hit in ordered))


def judge(hits: Iterable[Hit]) -> Judgement:
    """The strictest verdict of all hits; none: pass."""
    found = tuple(hits)
    return Judgement(max((hit.verdict for hit in found), default=Verdict.PASS), found)
