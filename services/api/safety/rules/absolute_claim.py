"""Blocks a reply that is certain where medicine is not: an outcome, a safety or a diagnosis without any doubt."""

from __future__ import annotations

from collections.abc import Iterable

from services.api.safety.case import Case, Sentence
from services.api.safety.verdicts import Hit, Verdict


class AbsoluteClaim:
    """Every active find of the group is a claim: the policy's terms join how certain it is said with what is said."""

    name = "absolute_claim"

    def assess(self, case: Case) -> None:
        """Whatever the user asked for, a claim is judged by what the reply says."""

    def judge(self, sentence: Sentence, case: Case) -> Iterable[Hit]:
        return [sentence.hit(self.name, Verdict.BLOCK, find) for find in sentence.active(self.name)]

    def end(self, case: Case) -> Iterable[Hit]:
        return ()
