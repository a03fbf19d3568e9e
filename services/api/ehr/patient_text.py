"""A record as compact lines for the model: bounded in tokens, most important facts first, nothing that says who it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import date

from services.api.ehr.record import Coded, Dosage, Medication, Observation, Record
from services.api.messages import Language

LIMIT_TOKENS = 2000
_MOST_VALUES = 2  # of one measurement: the latest, and the one before it
_LINE = 160
# Whatever field they turn up in: identity card (18 digits, the last may be X), mobile telephone, e-mail, record numbers.
_PATTERNS = re.compile(
    r"(?<!\d)\d{17}[\dXx](?!\d)|(?<!\d)1[3-9]\d{9}(?!\d)|[\w.+-]+@[\w-]+\.[\w.]+|(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)|"
    r"(?:住院号|病案号|门诊号|身份证号?|MRN|mrn)[:：#\s]*[\w-]+|(?<!\d)\+?\d[\d -]{8,}\d(?!\d)"
)
_HIDDEN = "[...]"

Count = Callable[[str], int]

_NAMES = {
    "zh": {
        "patient": "患者", "age": "岁", "months": "个月", "female": "女", "male": "男", "other": "其他性别",
        "unknown": "性别年龄不详", "allergies": "过敏", "none_known": "无已知过敏", "severe": "严重", "visit": "本次就诊原因",
        "orders": "待签医嘱", "problems": "现有问题", "medicines": "在用药物", "values": "检验与体征", "past": "既往史",
        "day": "天前", "cut": "（其余从略）", "today": "今天", "each": "每次", "times": "次/日",
    },
    "en": {
        "patient": "Patient", "age": "years", "months": "months", "female": "female", "male": "male", "other": "other sex",
        "unknown": "age and sex unknown", "allergies": "Allergies", "none_known": "no known allergies", "severe": "severe",
        "visit": "Reason for this visit", "orders": "Draft orders", "problems": "Active problems",
        "medicines": "Current medicines", "values": "Laboratory and vital signs", "past": "History", "day": "d ago",
        "cut": "(more left out)", "today": "today", "each": "each", "times": "times a day",
    },
}  # fmt: skip


def patient_text(record: Record, language: Language, count: Count, today: date, limit: int = LIMIT_TOKENS) -> str:
    """At most `limit` tokens by `count`. Sections go in the order of their weight; the least important lines go first."""
    names = _NAMES[language]
    lines: list[str] = [f"{names['patient']}: {_who(record, language)}"]
    for title, found in _sections(record, language, today):
        items = list(dict.fromkeys(clean(item, record.private)[:_LINE] for item in found))
        lines += [f"{names[title]}:", *(f"- {item}" for item in items)] if items else []
    return _within(lines, names["cut"], count, limit)


def clean(text: str, private: Iterable[str]) -> str:
    """`text` without the patient's own words and without what looks like an identifier."""
    for word in sorted(private, key=len, reverse=True):
        edge = r"(?<!\w){}(?!\w)" if word.isascii() else "{}"
        text = re.sub(edge.format(re.escape(word)), _HIDDEN, text, flags=re.IGNORECASE)
    return " ".join(_PATTERNS.sub(_HIDDEN, text).split())


def _within(lines: list[str], cut: str, count: Count, limit: int) -> str:
    room = limit - count(cut) - 1
    kept: list[str] = []
    for line in lines:
        room -= count(line) + 1  # and its line break
        if room < 0:
            return "\n".join([*kept, cut])
        kept.append(line)
    return "\n".join(kept)


def _who(record: Record, language: Language) -> str:
    names = _NAMES[language]
    known = []
    if record.age_years is not None:
        young = record.age_years < 2
        number = int(record.age_years * 12) if young else min(int(record.age_years), 90)
        known.append(f"{number}{'' if language == 'zh' else ' '}{names['months' if young else 'age']}")
    if record.sex:
        known.append(names[record.sex])
    return ("，" if language == "zh" else ", ").join(known) or names["unknown"]


def _sections(record: Record, language: Language, today: date) -> Iterable[tuple[str, list[str]]]:
    names = _NAMES[language]
    allergies = [_allergy(a.what, a.severe, a.reactions, names["severe"]) for a in record.allergies]
    if not allergies and record.no_known_allergies:
        allergies = [names["none_known"]]
    yield "allergies", allergies
    yield "visit", [reason for e in record.encounters if e.ongoing for reason in e.reasons]
    drafts = [_medicine(m, language) for m in record.medications if m.draft]
    yield "orders", drafts + [o.what.text for o in record.orders]
    yield "problems", [c.what.text for c in record.conditions if c.active]
    yield "medicines", [_medicine(m, language) for m in record.medications if m.active and not m.draft]
    yield "values", _values(record.observations, language, today)
    yield "past", [c.what.text for c in record.conditions if not c.active]


def _allergy(what: Coded, severe: bool, reactions: tuple[str, ...], word: str) -> str:
    told = [*reactions, *([word] if severe else [])]
    return f"{what.text} ({', '.join(told)})" if told else what.text


def _medicine(medication: Medication, language: Language) -> str:
    doses = "; ".join(filter(None, (_dose(dose, language) for dose in medication.dosages[:2])))
    return f"{medication.what.text}: {doses}" if doses else medication.what.text


def _dose(dose: Dosage, language: Language) -> str:
    names = _NAMES[language]
    if dose.each is None:
        return dose.text[:80]
    known = [f"{names['each']} {dose.each:g} {dose.unit}".strip()]
    known += [f"{dose.a_day:g} {names['times']}"] if dose.a_day else []
    return ", ".join([*known, *([dose.route] if dose.route else [])])


def _values(observations: Iterable[Observation], language: Language, today: date) -> list[str]:
    """Latest values first; those that the laboratory flagged before the others."""
    newest = sorted(observations, key=lambda o: o.taken or date.min, reverse=True)
    seen: dict[str, int] = {}
    kept = []
    for one in newest:
        seen[one.what.text] = seen.get(one.what.text, 0) + 1
        if seen[one.what.text] <= _MOST_VALUES:
            kept.append(one)
    kept.sort(key=lambda o: o.abnormal in ("", "N"))
    return [_shown(one, language, today) for one in kept]


def _shown(one: Observation, language: Language, today: date) -> str:
    names = _NAMES[language]
    value = one.text or (f"{one.value:g} {one.unit}".strip() if one.value is not None else "")
    flag = f" [{one.abnormal}]" if one.abnormal not in ("", "N") else ""
    if one.taken is None:
        return f"{one.what.text} {value}{flag}"
    days = max((today - one.taken).days, 0)
    space = "" if language == "zh" else " "
    when = f"{days}{space}{names['day']}" if days else names["today"]
    return f"{one.what.text} {value}{flag} ({when})"
