"""Personal data that a hospital's text may hold: found by form, so names in running text are not found.

Findings are masked, so that a report on the data does not spread them.
"""

from __future__ import annotations

import datetime
import re
import unicodedata
from collections.abc import Iterator

_CJK = "\u3400-\u4dbf\u4e00-\u9fff"
_ID_NUMBER = re.compile(r"(?<![0-9A-Za-z])([1-9]\d{5})[ -]?(\d{4})(\d{2})(\d{2})[ -]?(\d{3}[0-9Xx])(?![0-9A-Za-z])")
_MOBILE = re.compile(r"(?<![0-9A-Za-z.])(?:(?:\+|00)?86[ -]?)?(1[3-9]\d([ -]?)\d{4}\2\d{4})(?![0-9A-Za-z]|\.\d)")
_MOBILE_LABEL = re.compile(r"(?:tel|phone|mobile|cell|call)\D{0,12}$", re.IGNORECASE)
_RECORD_NUMBER = re.compile(
    r"(?:病历|病案|住院|门诊|就诊|就诊卡|登记|医保卡?|社保卡?|检查|影像|标本)(?:号码|编号|号|ID)\s*[:是为]?\s*([A-Za-z]{0,4}-?\d{4,})"
    r"|\b(?:MRN|medical record (?:number|no\.?)|admission (?:number|no\.?))\s*[:#]?\s*(?:is\s+)?([A-Za-z]{0,4}-?\d{4,})",
    re.IGNORECASE,
)
_E_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}", re.ASCII)
# A labelled name; 某, X and * are how names are made unknown.
_NAME = re.compile(rf"(?:姓名|患者名|病人名)\s*:\s*([{_CJK}]{{2,4}})")
_ANONYMOUS = re.compile(r"[某XxＸ*×○]|匿名|不详|未知|保密|隐去")

_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECK_DIGITS = "10X98765432"


def find_personal_data(text: str) -> Iterator[tuple[str, str]]:
    """Pairs of kind and masked finding. Digits in full width count as digits."""
    text = unicodedata.normalize("NFKC", text)
    numbers = [match for match in _ID_NUMBER.finditer(text) if is_id_number("".join(match.groups()))]
    for match in numbers:
        yield "id-number", _mask(match[0])
    for match in _MOBILE.finditer(text):
        if _beside_chinese(text, match) and not any(n.start() <= match.start() < n.end() for n in numbers):
            yield "mobile", _mask(match[1])
    for match in _RECORD_NUMBER.finditer(text):
        yield "record-number", _mask(match[1] or match[2])
    for match in _E_MAIL.finditer(text):
        yield "e-mail", _mask(match[0])
    for match in _NAME.finditer(text):
        if not _ANONYMOUS.search(match[1]):
            yield "name", match[1][0] + "*" * (len(match[1]) - 1)


def is_id_number(number: str) -> bool:
    """Whether 18 characters are a citizen identity number of GB 11643-1999: a real day of birth, and a right last character.

    The check is ISO 7064 MOD 11-2: the weighted sum of the first 17 digits modulo 11 picks the 18th.
    """
    if not re.fullmatch(r"\d{17}[0-9Xx]", number, re.ASCII):
        return False
    try:
        born = datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    checked = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, number, strict=False))
    return born.year >= 1850 and _CHECK_DIGITS[checked % 11] == number[17].upper()


def _beside_chinese(text: str, match: re.Match[str]) -> bool:
    """Eleven digits are a phone in Chinese text, or after a word that says so; elsewhere they may be anything."""
    before, after = text[max(0, match.start() - 20) : match.start()], text[match.end() : match.end() + 20]
    return bool(re.search(f"[{_CJK}]", before + after) or _MOBILE_LABEL.search(before))


def _mask(found: str) -> str:
    shown = 3 if len(found) > 6 else 1
    return found[:shown] + "*" * (len(found) - shown)
