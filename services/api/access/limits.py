"""How much one caller may ask: requests a minute (a token bucket) and requests at a time. Counted in this process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from services.api.access.keys import Caller
from services.api.errors import ConcurrencyLimited, RateLimited

MOST_IDLE = 4096  # callers whose full buckets are remembered; the rest begins full anyway


@dataclass(slots=True)
class _Use:
    """One caller's bucket, which may be less than full, and its running requests."""

    tokens: float
    at: float
    running: int = 0


class Ticket:
    """A caller's place. `leave` it exactly once; `headers` go with the answer."""

    __slots__ = ("_use", "headers")

    def __init__(self, use: _Use, headers: tuple[tuple[str, str], ...]) -> None:
        self._use: _Use | None = use
        self.headers = headers

    def leave(self) -> None:
        if self._use is not None:
            self._use.running -= 1
            self._use = None


class Limits:
    """All callers' use. A bucket holds a minute's requests and fills evenly, so that a burst is possible and a rate is kept."""

    def __init__(
        self, requests_per_minute: int = 0, concurrency: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """For callers that have no limit of their own; 0: none."""
        self._per_minute = requests_per_minute
        self._concurrency = concurrency
        self._clock = clock
        self._uses: dict[str, _Use] = {}

    def enter(self, caller: Caller) -> Ticket | None:
        """`None` for a caller without limits. Raises `RateLimited`, `ConcurrencyLimited`: a refused request uses nothing."""
        per_minute = self._per_minute if caller.requests_per_minute is None else caller.requests_per_minute
        most = self._concurrency if caller.concurrency is None else caller.concurrency
        if not per_minute and not most:
            return None
        now = self._clock()
        use = self._use(caller.id, per_minute, now)
        if most and use.running >= most:
            raise ConcurrencyLimited(
                f"this key has {use.running} requests running, and {most} is its limit: retry when one has ended"
            )
        if not per_minute:
            use.running += 1
            return Ticket(use, ())
        use.tokens = min(float(per_minute), use.tokens + (now - use.at) * per_minute / 60)
        use.at = now
        if use.tokens < 1:
            wait = (1 - use.tokens) * 60 / per_minute
            raise RateLimited(
                f"this key may ask {per_minute} times a minute: retry in {math.ceil(wait)} s",
                retry_after_s=math.ceil(wait),
                headers=dict(_headers(per_minute, use.tokens)),
            )
        use.tokens -= 1
        use.running += 1
        return Ticket(use, _headers(per_minute, use.tokens))

    def _use(self, caller_id: str, per_minute: int, now: float) -> _Use:
        use = self._uses.get(caller_id)
        if use is None:
            if len(self._uses) >= MOST_IDLE:
                self._uses = {k: u for k, u in self._uses.items() if u.running or now - u.at < 60}
            use = self._uses[caller_id] = _Use(float(per_minute), now)
        return use


def _headers(per_minute: int, tokens: float) -> tuple[tuple[str, str], ...]:
    """OpenAI's names: how many a minute, how many are left, and how long until all are there again."""
    return (
        ("x-ratelimit-limit-requests", str(per_minute)),
        ("x-ratelimit-remaining-requests", str(int(tokens))),
        ("x-ratelimit-reset-requests", _duration((per_minute - tokens) * 60 / per_minute)),
    )


def _duration(seconds: float) -> str:
    """OpenAI writes `1s`, `6m0s`."""
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
