"""Limits of one caller: a bucket a minute and places at a time, whatever the order of things."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.access.keys import Caller
from services.api.access.limits import Limits, Ticket
from services.api.errors import ConcurrencyLimited, RateLimited


def enter(limits: Limits, caller: Caller) -> Ticket:
    ticket = limits.enter(caller)
    assert ticket is not None
    return ticket


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


ME, YOU = Caller("me", "a"), Caller("you", "b")


@given(st.integers(1, 50), st.lists(st.floats(0, 30), max_size=200))
def test_no_minute_holds_more_than_the_rate_and_a_full_bucket(rate: int, pauses: list[float]) -> None:
    clock = Clock()
    limits = Limits(rate, clock=clock)
    let_in: list[float] = []
    for pause in pauses:
        clock.now += pause
        try:
            enter(limits, ME).leave()
            let_in.append(clock.now)
        except RateLimited:
            pass
    for first in let_in:
        assert sum(first <= at < first + 60 for at in let_in) <= 2 * rate


@given(st.integers(1, 600))
def test_waiting_as_long_as_told_is_enough(rate: int) -> None:
    clock = Clock()
    limits = Limits(rate, clock=clock)
    for _ in range(rate):
        enter(limits, ME).leave()
    with pytest.raises(RateLimited) as refused:
        limits.enter(ME)
    wait = int(refused.value.headers()["retry-after"])
    assert 1 <= wait <= math.ceil(60 / rate)
    assert refused.value.headers()["x-ratelimit-remaining-requests"] == "0"
    limits.enter(YOU)  # nobody pays for another
    clock.now += wait
    limits.enter(ME)


def test_headers_are_openais() -> None:
    headers = dict(enter(Limits(60, clock=Clock()), ME).headers)
    assert headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
    }
    slow = enter(Limits(1, clock=Clock()), ME).headers
    assert dict(slow)["x-ratelimit-reset-requests"] == "1m0s"


@given(st.integers(1, 8), st.lists(st.booleans(), max_size=100))
def test_never_more_at_a_time_and_every_place_comes_back(most: int, moves: list[bool]) -> None:
    limits = Limits(concurrency=most, clock=Clock())
    inside: list[Ticket] = []
    for enters in moves:
        if enters and len(inside) < most:
            inside.append(enter(limits, ME))
        elif enters:
            with pytest.raises(ConcurrencyLimited):
                limits.enter(ME)
        elif inside:
            ticket = inside.pop()
            ticket.leave()
            ticket.leave()  # leaving twice frees nothing twice


def test_a_keys_own_limit_goes_before_the_settings() -> None:
    limits = Limits(1, 1, clock=Clock())
    free = Caller("free", "c", requests_per_minute=0, concurrency=0)
    for _ in range(50):
        assert limits.enter(free) is None


def test_idle_callers_are_forgotten() -> None:
    clock = Clock()
    limits = Limits(5, clock=clock)
    for n in range(10_000):
        clock.now += 1
        enter(limits, Caller(str(n), "x")).leave()
    assert len(limits._uses) < 5000
