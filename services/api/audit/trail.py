"""What is known of one request, gathered where it becomes known: the audit entry and the trace are written from it at the end.

Facts only: names of models, verdicts, counts. Nobody puts a text here.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Judged:
    """The guard's word on one choice."""

    choice: int
    verdict: str
    rules: tuple[str, ...]
    policy: str


@dataclass(slots=True)
class Trail:
    """One request. Clock times are seconds since 1970."""

    request_id: str = "-"
    method: str = ""
    route: str = "other"
    caller: str | None = None  # a key's id
    client: str | None = None  # address, as trusted proxies tell it
    status: int = 0
    complete: bool = False  # whether the last byte of the answer was handed over
    error: str | None = None  # stable code of what ended it
    began: float = field(default_factory=time.time)
    seconds: float = 0.0

    model: str | None = None
    adapter: str | None = None
    adapter_version: str | None = None
    response_id: str | None = None
    turn_began: float | None = None
    first_event: float | None = None
    turn_ended: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)

    request_hash: str | None = None
    response_hash: str | None = None


_current: ContextVar[Trail | None] = ContextVar("trail", default=None)


def current() -> Trail:
    """The trail of the request that is being answered; outside one, a trail that nobody reads."""
    return _current.get() or Trail()


def follow(trail: Trail) -> None:
    """Makes it the current one of this task and of those that it starts. The task ends with its request."""
    _current.set(trail)
