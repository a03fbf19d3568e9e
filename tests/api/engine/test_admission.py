"""How many may be inside at once."""

from __future__ import annotations

import asyncio

import pytest

from services.api.engine.admission import Admission
from services.api.errors import InvalidRequest, Overloaded, ShuttingDown


def test_places_are_counted_by_choices_and_given_back() -> None:
    admission = Admission(4)
    with admission.admit(3):
        assert admission.active == 3
        with admission.admit(1):
            assert admission.active == 4
    assert admission.active == 0


def test_a_full_house_says_retry_and_takes_no_place() -> None:
    admission = Admission(4)
    with admission.admit(3):
        with pytest.raises(Overloaded) as error, admission.admit(2):
            pass
        assert error.value.headers() == {"retry-after": "1"}
        assert admission.active == 3
        with admission.admit(1):
            pass


def test_what_never_fits_is_the_clients_error() -> None:
    with pytest.raises(InvalidRequest), Admission(4).admit(5):
        pass


def test_an_error_inside_gives_the_places_back() -> None:
    admission = Admission(4)
    with pytest.raises(KeyError), admission.admit(4):
        raise KeyError
    assert admission.active == 0


def test_a_closed_house_takes_nobody_and_lets_the_others_finish() -> None:
    admission = Admission(4)
    with admission.admit(1):
        admission.close()
        with pytest.raises(ShuttingDown), admission.admit(1):
            pass
        assert admission.active == 1
    assert not admission.is_open


async def test_waiting_ends_with_the_last_one_out() -> None:
    admission = Admission(4)
    assert await admission.wait_until_idle(0.01)
    with admission.admit(2):
        waiting = asyncio.create_task(admission.wait_until_idle(5))
        with admission.admit(1):
            pass
        await asyncio.sleep(0.01)
        assert not waiting.done()
    assert await waiting


async def test_waiting_ends_after_its_limit() -> None:
    admission = Admission(4)
    with admission.admit(1):
        assert not await admission.wait_until_idle(0.01)
