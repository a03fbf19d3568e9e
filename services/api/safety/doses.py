"""Reads doses from normalised text: how much at once or a day, how often, and how strong a tablet is.

Both languages, digits and Chinese numerals. A range counts with its upper end for one dose. Amounts per kilogram are not
doses of a person and are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_DIGITS: Final = {"零": 0, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9}
_WORDS: Final = {
    word: float(n)
    for n, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    )
} | {"half": 0.5, "a": 1.0, "an": 1.0, "another": 1.0, "once": 1.0, "twice": 2.0, "thrice": 3.0}
_MG: Final = {
    "mg": 1.0, "毫克": 1.0, "milligram": 1.0, "milligrams": 1.0, "mgs": 1.0,
    "g": 1000.0, "克": 1000.0, "gram": 1000.0, "grams": 1000.0, "公克": 1000.0,
    "ug": 0.001, "mcg": 0.001, "μg": 0.001, "微克": 0.001, "microgram": 0.001, "micrograms": 0.001,
}  # fmt: skip
_IU: Final = frozenset({"iu", "国际单位", "单位", "unit", "units", "万单位"})
_ML: Final = frozenset({"ml", "毫升", "cc", "mls"})
_PIECES: Final = frozenset(
    ["片", "粒", "颗", "tablet", "tablets", "pill", "pills", "capsule", "capsules", "caplet", "caplets", "tab", "tabs"]
)  # solid pieces of a known strength; 袋, 支, 丸 and drops differ too much
_NUMBER = (
    r"[0-9][0-9,]*(?:\.[0-9]+)?|[半一二两三四五六七八九十百]{1,4}|"
    r"\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|half|another)\b"
)
_UNIT = "|".join(sorted({*_MG, *_IU, *_ML, *_PIECES}, key=len, reverse=True))
_AMOUNT = re.compile(
    rf"(?:({_NUMBER}) ?(?:{_UNIT})? ?(?:-|~|到|至|–|—|或|、|to|or) ?)?({_NUMBER}) ?({_UNIT})(?![a-z])"
    r"(?P<kg> ?(?:/|每|per |a ) ?(?:kg|公斤|千克|kilo)|/m)?"
)
_PER_DAY_AFTER = re.compile(
    r"^ ?(?:[^,。;.!?]{0,8} )?(?:/ ?(?:d|day|天|日)\b|/[天日]|per day|a day|daily|each day|in (?:a day|24 hours)|in total)"
)
_PER_DAY_BEFORE = re.compile(
    r"(?:(?:每|一)(?:天|日|昼夜)|24小时内?|全天|日剂?量|daily|per day|a day|total)"
    r"(?:总共|共|总量|一共|加起来|的?剂?量|可以|能|可|要|就|最多|吃到|吃够|"
    r"加到|到|达|吃|服|用|喝|打|大概|大约|约|为|是|dose|of|up to|to| )*$"
)
_FREQUENCIES: Final = tuple(
    (re.compile(pattern), value)
    for pattern, value in (
        (rf"(?:每|一)(?:天|日)(?:分|各|可|要|就|服用?|吃|口服|用)?({_NUMBER})(?:至|到|-|~)?({_NUMBER})?(?:次|顿|回)", None),
        (rf"({_NUMBER})(?:次|顿)(?:/|每|一)(?:天|日)|日({_NUMBER})次|(?:每|一)(?:天|日)[^,。;0-9]{{0,4}}({_NUMBER})次|"
            rf"天天({_NUMBER})次", None),
        (rf"分({_NUMBER})次", -1.0),
        (r"\b([0-9]+|one|two|three|four|five|six|seven|eight|once|twice|thrice)(?: to (?:four|six|"
            r"[0-9]))?(?: times)? (?:a|per|each|every) day\b|\b(once|twice|[0-9] times|three times|"
            r"four times) daily\b", None),
    )
)  # fmt: skip
_EVERY_HOURS = re.compile(
    rf"每(?:隔)?(?:[0-9一二两三四五六八]+(?:-|~|到|至))?({_NUMBER})?个?(?:小时|钟头)|({_NUMBER})个?(?:小时|钟头)(?:吃|服|用|喝|打|来)?(?:一次|"
    rf"1次|一片|一回|一顿)|"
    rf"\bevery (?:(?:[0-9]+|[a-z]+) ?(?:-|to|–|or) ?)?({_NUMBER}|hour|other hour)(?: ?(?:hours?|hrs?|h)\b)?|"
    rf"\bq([0-9]{{1,2}})h\b|\bhourly\b"
)
_NAMED_FREQUENCIES: Final = (
    (re.compile(r"\bqid\b|四次每日|早中晚(?:和|加|及)?睡前"), 4.0),
    (re.compile(r"\btid\b|早中晚|三餐|三顿"), 3.0),
    (re.compile(r"\bbid\b|早晚(?:各|一|两)?|一早一晚|morning and (?:night|evening)"), 2.0),
    (re.compile(r"\bqd\b|\bqn\b|每晚|睡前|每早|\b(?:daily|nightly|every (?:day|morning|night|evening)|at bedtime)\b|"
        r"每天|每日|一天"), 1.0),
)  # fmt: skip
_STRENGTH = re.compile(
    rf"(?:每|一)(?:片|粒|颗)(?:是|含|有)?({_NUMBER}) ?(mg|毫克|g|克|微克)|([0-9.]+) ?(mg|毫克|g|克|微克|mcg) ?(?:一|每|/|的|"
    rf"装的?)?(?:片|粒|颗)(?!/)|"
    r"([0-9.]+) ?(mg|g|mcg)(?: [a-z-]+){0,3} (?:tablets?|pills?|capsules?|caplets?)\b"
)


@dataclass(frozen=True, slots=True)
class Amount:
    """One amount in a text. `kind` is mg, iu, ml or pieces; `a_day` when it is a whole day's and not one dose."""

    start: int
    end: int
    value: float
    kind: str
    a_day: bool
    low: float = 0.0  # a range's lower end; the value itself without one


def number(written: str) -> float | None:
    """A number in digits, Chinese numerals (半, 十二, 二十, 一百) or a plain English word; None for anything else."""
    if written in _WORDS:
        return _WORDS[written]
    if written == "半":
        return 0.5
    try:
        return float(written.replace(",", ""))
    except ValueError:
        return _chinese(written)


def _chinese(written: str) -> float | None:
    total, digit = 0, None
    for character in written:
        if character in _DIGITS:
            digit = _DIGITS[character]
        elif character in "十百千":
            total += (1 if digit is None else digit) * {"十": 10, "百": 100, "千": 1000}[character]
            digit = None
        else:
            return None
    return float(total + (digit or 0)) if written else None


def amounts(text: str) -> list[Amount]:
    """Every amount of a person's dose in `text`."""
    found = []
    for match in _AMOUNT.finditer(text):
        written, unit = match[2], match[3]
        value = number(written)
        if value is None or match["kg"]:
            continue
        kind, factor = _kind(unit)
        after = text[match.end() : match.end() + 24]
        before = text[max(0, match.start() - 16) : match.start()]
        a_day = bool(_PER_DAY_AFTER.match(after) or _PER_DAY_BEFORE.search(before))
        low = number(match[1]) if match[1] else None
        low = value if low is None or low > value else low
        found.append(Amount(match.start(), match.end(), value * factor, kind, a_day, low * factor))
    return found


def _kind(unit: str) -> tuple[str, float]:
    if unit in _MG:
        return "mg", _MG[unit]
    if unit in _IU:
        return "iu", 10000.0 if unit == "万单位" else 1.0
    return ("ml" if unit in _ML else "pieces"), 1.0


def times_a_day(text: str) -> float | None:
    """How often a day, where the text says so; by hours: 24 divided by them."""
    for pattern, fixed in _FREQUENCIES:
        if match := pattern.search(text):
            if fixed is not None:
                return None  # 一日3克,分3次: the amount is the day's
            written = next((group for group in match.groups() if group), "")
            return number(written.split()[0]) if written else None
    if match := _EVERY_HOURS.search(text):
        written = next((group for group in match.groups() if group), "")
        hours = 2.0 if written.startswith("other") else number(written)
        if written in ("", "hour"):
            hours = 1.0
        if hours:
            return 24 / hours if hours <= 24 else None
    return next((value for pattern, value in _NAMED_FREQUENCIES if pattern.search(text)), None)


def is_divided(text: str) -> bool:
    """分3次, in divided doses: the amount named is the day's."""
    return bool(
        re.search(rf"分(?:成|为)?(?:{_NUMBER}|几|数)次|divided (?:doses|into)|in (?:two|three|four) doses", text)
    )


def strength(text: str) -> float | None:
    """Milligrams in one tablet, where the text says so."""
    match = _STRENGTH.search(text)
    if match is None:
        return None
    pairs = ((match[1], match[2]), (match[3], match[4]), (match[5], match[6]))
    written, unit = next((n, u) for n, u in pairs if n)
    value = number(written)
    return None if value is None else value * _MG[unit]
