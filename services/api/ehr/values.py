"""Critical laboratory values and vital signs of a record, by the thresholds of the safety policy (`laboratory.yaml`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Final

from services.api.ehr.findings import Finding, say
from services.api.ehr.patient_text import clean
from services.api.ehr.record import Observation, Record
from services.api.messages import Language
from services.api.safety.normalise import normalise
from services.api.safety.policy import Policy
from services.api.safety.rules import laboratory
from services.api.safety.rules.laboratory import GROUP, Value

RECENT_DAYS: Final = 7  # an older value has been seen, or is no longer true
LOINC: Final = "http://loinc.org"
# LOINC codes of blood and bedside values to the names under which the policy knows them. A code that is not here is not judged:
# the same name may be of urine.
NAMES: Final = {
    "2823-3": "potassium", "6298-4": "potassium", "2951-2": "sodium", "2947-0": "sodium", "17861-6": "calcium",
    "2000-8": "calcium", "2345-7": "glucose", "2339-0": "glucose", "15074-8": "glucose", "14749-6": "glucose",
    "718-7": "hemoglobin", "777-3": "platelets", "26515-7": "platelets", "6301-6": "INR", "34714-6": "INR",
    "751-8": "neutrophils", "26499-4": "neutrophils", "6690-2": "WBC", "26464-8": "WBC", "2524-7": "lactate",
    "89579-7": "troponin", "10839-9": "troponin", "6598-7": "troponin", "67151-1": "troponin", "2708-6": "SpO2",
    "59408-5": "SpO2", "8480-6": "systolic", "8310-5": "temperature", "8867-4": "heart rate",
    "9279-1": "respiratory rate", "2160-0": "creatinine", "14682-9": "creatinine", "2157-6": "creatine kinase",
    "14334-7": "lithium level", "3255-7": "fibrinogen", "1963-8": "bicarbonate", "1975-2": "bilirubin",
}  # fmt: skip
_OTHER_SPECIMEN = re.compile(
    r"尿|脑脊液|胸水|腹水|引流|粪|便|舒张|低压|平均|比值|/|\burin|\bcsf\b|cerebrospinal|fluid|stool|diastolic|mean|ratio",
    re.I,
)
_FLAGGED = frozenset({"HH", "LL", "AA"})  # v3 ObservationInterpretation: critical high, low, abnormal


def critical_values(record: Record, policy: Policy, language: Language, today: date) -> Iterator[Finding]:
    """The latest value of each kind, where it is recent (or bears no date) and beyond the limit for this person."""
    facts = _facts(record)
    for one in _latest(record.observations):
        if one.taken is not None and today - one.taken > timedelta(days=RECENT_DAYS):
            continue
        judged = _read(one, policy)
        beyond = judged is not None and laboratory.is_critical(judged, facts, has_symptoms=False)
        if not beyond and one.abnormal not in _FLAGGED:
            continue
        name = clean(one.what.text, record.private)[:60]
        value = one.text or f"{one.value:g} {one.unit}".strip()
        when = one.taken.isoformat() if one.taken else say(language, "日期不详", "no date")
        why = say(language, "超出危急值界限", "beyond the critical limit")
        if not beyond:
            why = say(language, "检验科标为危急值", "flagged critical by the laboratory")
        yield Finding(
            "laboratory",
            "critical",
            say(language, f"危急值：{name} {value}", f"Critical value: {name} {value}"),
            f"{name}: {value} ({when}); {why}.",
            f"MedThink policy {policy.label}",
        )


def _latest(observations: list[Observation]) -> list[Observation]:
    newest: dict[str, Observation] = {}
    for one in observations:
        key = one.what.code_of(LOINC) or one.what.text
        known = newest.get(key)
        if known is None or (one.taken or date.max) >= (known.taken or date.max):
            newest[key] = one
    return list(newest.values())


def _read(one: Observation, policy: Policy) -> Value | None:
    """The value in the policy's unit, by its LOINC code, or by its name where it bears no code."""
    if one.value is None or one.text.startswith(("<", ">")):
        return None
    code = one.what.code_of(LOINC)
    name = NAMES.get(code) if code else one.what.text
    if name is None or (code is None and _OTHER_SPECIMEN.search(name)):
        return None
    text = normalise(f"{name} {one.value:.2f} {one.unit}").text
    finds = [find for find in policy.matcher.find(text) if find.term.group == GROUP]
    return laboratory.read_value(text, finds[0]) if finds else None


def _facts(record: Record) -> frozenset[str]:
    age = record.age_years
    if age is None or age >= 12:
        return frozenset()
    return frozenset({"newborn"} if age < 28 / 365.25 else {"infant"} if age < 1 else {"child"})
