"""Numbers beside the names of laboratory values and vital signs: read with their unit, held against the policy's thresholds.

A term of the group `lab` finds the name; its data hold `below` and `above` (critical at or beyond), the units with the
factor that leads to the thresholds' unit, and what to assume of a number without one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.api.safety.terms import Find

GROUP = "lab"
_AFTER = 34  # characters after the name in which its number stands
_NUMBER = re.compile(r"(?<![0-9.a-z/-])([<>≥≤]?)\s?([0-9]{1,7}(?:[.,][0-9]{1,3})?)(?![0-9]|\.[0-9])")
# What makes a number none of the value's: a range, a time, an age, a date, a dose.
_RANGE_AFTER = re.compile(r"^\s?(?:-|~|–|—|到|至|to )\s?[0-9]")
_OTHER_AFTER = re.compile(
    r"^\s?(?:岁|年|月|天|周|小时|分钟|次|片|粒|颗|点(?!几)|号|床|楼|公斤|斤|kg\b|years?|days?|weeks?|hours?|minutes?|months?|times?|tablets?|am\b|pm\b|h\b)"
)
_NORMAL_BEFORE = re.compile(
    r"(?:正常(?:值|范围|参考)?|参考(?:值|范围)|标准|目标|控制在|降到|升至正常|低于|高于|超过|大于|小于|不超过|达到目标|维持在"
    r"|normal(?: range)?|reference|target|goal|below|above|over|under|less than|more than|at least|keep)[^0-9,。;!?]{0,10}$"
)
_CUT = re.compile(r"[。;!?]|\.\s")


@dataclass(frozen=True, slots=True)
class Value:
    """A number in the thresholds' unit, and the find of its name; `second` is the lower blood pressure."""

    find: Find
    number: float
    second: float | None = None


def read_value(text: str, find: Find) -> Value | None:
    """The first number after the name that can be its value, in the unit of the thresholds; none: nothing to judge."""
    data = find.term.data or {}
    window = text[find.start : find.end + _AFTER]
    if cut := _CUT.search(window):
        window = window[: cut.start()]
    for match in _NUMBER.finditer(window):
        rest = window[match.end() :]
        if _RANGE_AFTER.match(rest) or _NORMAL_BEFORE.search(window[: match.start()]):
            return None
        if _OTHER_AFTER.match(rest) and not data.get("pair"):
            continue
        number = _decimal(match[2])
        if data.get("pair"):
            return _pair(find, number, rest)
        converted = _converted(number, rest, data)
        return Value(find, converted) if converted is not None else None
    return None


def is_critical(value: Value, facts: Iterable[str], has_symptoms: bool) -> bool:
    """Beyond the threshold that holds for this person; some hold only with symptoms."""
    data = value.find.term.data or {}
    for limits in _limits(data, frozenset(facts), has_symptoms):
        below, above = limits.get("below"), limits.get("above")
        if below is not None and value.number <= below:
            return True
        if above is not None and value.number >= above:
            return True
        second = limits.get("second_above")
        if second is not None and value.second is not None and value.second >= second:
            return True
    return False


def _limits(data: Mapping[str, Any], facts: frozenset[str], has_symptoms: bool) -> list[Mapping[str, Any]]:
    """The limits in force: those of the person's facts in place of the general ones, and those with symptoms besides."""
    own = [limits for fact, limits in data.get("facts", {}).items() if fact in facts]
    found: list[Mapping[str, Any]] = own or [data]
    if has_symptoms and "symptoms" in data:
        found.append(data["symptoms"])
    return found


def _decimal(written: str) -> float:
    """`6,8` is a decimal, `20,000` a thousand mark."""
    if "," in written:
        whole, _, part = written.partition(",")
        return float(whole + part) if len(part) == 3 else float(f"{whole}.{part}")
    return float(written)


def _pair(find: Find, first: float, rest: str) -> Value | None:
    second = re.match(r"\s?(?:/|over|比|、|,|-)\s?([0-9]{2,3})", rest)
    if not 40 <= first <= 320:
        return None
    return Value(find, first, float(second[1]) if second else None)


def _converted(number: float, rest: str, data: Mapping[str, Any]) -> float | None:
    """By the unit that follows, else by what a number of that size can only be; implausible numbers are no values."""
    if data.get("fahrenheit_from") is not None and number >= data["fahrenheit_from"]:
        number = (number - 32) / 1.8
    factor = _written_factor(rest, data)
    if factor is None:
        factor = next((float(guess["factor"]) for guess in data.get("guess", ()) if number >= guess["from"]), 1.0)
    converted = number * factor
    low, high = data.get("plausible", (0, 1e9))
    return converted if low <= converted <= high else None


def _written_factor(rest: str, data: Mapping[str, Any]) -> float | None:
    near = rest[:14].lstrip()
    for unit, factor in data.get("units", {}).items():
        if near.startswith(unit):
            return float(factor)
    return None
