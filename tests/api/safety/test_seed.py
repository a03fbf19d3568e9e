"""The article's three regexes, with their faults: the floor to be measured against."""

from __future__ import annotations

import pytest

from services.api.safety.judge import judge_reply
from services.api.safety.seed import SeedJudge
from services.api.safety.verdicts import Verdict


@pytest.mark.parametrize(
    ("reply", "rules"),
    [
        ("肯定能治好。", ("absolute_claim",)),
        ("中性粒细胞绝对值偏低。", ("absolute_claim",)),  # its fault
        ("可以做干细胞治疗。", ("unapproved_therapy",)),
        ("胸痛可能是肌肉拉伤。", ("missing_emergency_advice",)),
        ("胸痛请立即就诊。", ()),
        ("胸口像压了块石头。", ()),  # its fault
    ],
)
def test_as_the_article_has_it(reply: str, rules: tuple[str, ...]) -> None:
    found = judge_reply(SeedJudge(), [("user", "?")], reply)
    assert found.rules == rules
    assert found.verdict is (Verdict.BLOCK if rules else Verdict.PASS)
