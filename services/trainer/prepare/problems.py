"""What is wrong with the data, all of it, each with its file and line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

# Kind to what it means; the report's summary and the documentation print these.
KINDS = {
    "json": "not a JSON object in UTF-8",
    "form": "in none of the forms that are read, or with values of the wrong type",
    "empty": "a text that is missing or blank",
    "thinking": "<think> tags that do not open and close one reasoning before the answer",
    "turns": "turns in an order that no conversation has",
    "marker": "a turn marker or tag inside a text",
    "character": "control or replacement characters, or half a surrogate pair",
    "id-number": "a Chinese identity number",
    "mobile": "a mobile phone number",
    "record-number": "a number of a patient record or admission",
    "e-mail": "an e-mail address",
    "name": "a patient's name",
    "duplicate": "the same conversation again",
    "held-out": "a question that was to be held out, or nearly",
    "too-long": "longer than max_length; never cut, since that would lose the answer or its end",
}
# Findings that a person may judge to be harmless; the others cannot be trained on.
ALLOWABLE = ("id-number", "mobile", "record-number", "e-mail", "name", "duplicate", "held-out")


@dataclass(frozen=True)
class Problem:
    """`where` is `file:line`, with `#turn` where one assistant turn of several is meant. `message` fits in a line."""

    where: str
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.message}"


@dataclass
class Problems:
    """Collects problems in reading order; those of an allowed kind are counted and let pass."""

    allow: frozenset[str] = frozenset()
    found: list[Problem] = field(default_factory=list)
    allowed: Counter[str] = field(default_factory=Counter)

    def add(self, new: Iterable[Problem]) -> bool:
        """Takes all of `new`; whether any of them stands, so that its row cannot be used."""
        stands = False
        for problem in new:
            if problem.kind in self.allow:
                self.allowed[problem.kind] += 1
            else:
                self.found.append(problem)
                stands = True
        return stands

    def in_order(self) -> list[Problem]:
        """Standing problems by file, line and turn, whichever stage found them."""
        return sorted(self.found, key=lambda problem: _place(problem.where))

    def counts(self) -> dict[str, int]:
        """Standing problems by kind, in the order of `KINDS`."""
        counted = Counter(problem.kind for problem in self.found)
        return {kind: counted[kind] for kind in KINDS if kind in counted}

    def summary(self) -> str:
        """One line a kind."""
        return "\n".join(f"{count:>7,}  {kind}: {KINDS[kind]}" for kind, count in self.counts().items())


def _place(where: str) -> tuple[str, int, int]:
    name, _, line = where.rpartition(":")
    line, _, turn = line.partition("#")
    return name, int(line), int(turn or 0)
