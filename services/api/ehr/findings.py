"""What deterministic code has found wrong, before any model is asked: it holds with any weights, and with none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from services.api.messages import Language

Level = Literal["warning", "critical"]
Kind = Literal[
    "allergy", "interaction", "pregnancy", "dose", "duplicate", "age", "laboratory", "red_flag", "other_patient"
]
LEVELS: tuple[Level, ...] = ("critical", "warning")


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem: `summary` is a sentence for a card, `detail` the reason, `source` where the rule comes from."""

    kind: Kind
    level: Level
    summary: str
    detail: str
    source: str = ""
    source_url: str = ""


def say(language: Language, zh: str, en: str) -> str:
    """The one of two texts that the reader's language asks for."""
    return zh if language == "zh" else en


def worst_first(findings: list[Finding]) -> list[Finding]:
    """Critical ones first, otherwise as they were found; the same text once."""
    unique = list({(f.kind, f.summary): f for f in findings}.values())
    return sorted(unique, key=lambda finding: LEVELS.index(finding.level))
