"""Numbered steps from an empty database to the present one. A step that was released is never changed again.

To add one: a module with VERSION, NAME and `statements(dialect)`, its place in `steps`, the change in `schema.py`, a test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.api.memory.migrations import m0001_sessions


@dataclass(frozen=True, slots=True)
class Step:
    """SQL that takes a database from the version before to `version`; `dialect` is sqlite or postgresql."""

    version: int
    name: str
    statements: Callable[[str], Sequence[str]]


def steps() -> tuple[Step, ...]:
    """All steps in order."""
    return tuple(Step(m.VERSION, m.NAME, m.statements) for m in (m0001_sessions,))
