"""What a guard asks of a profile: to open a case, and to judge it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from services.api.safety.case import Case
from services.api.safety.gate import Judging


class Opening(Judging, Protocol):
    """A judge that opens its own cases."""

    def open(self, messages: Sequence[tuple[str, str]], system_prompt: str | None = None) -> Case: ...
