"""FHIR R4 as EHRs send it: read tolerantly, field by field. What is missing or malformed is left out, never an error.

Resources that name another subject than the patient in view are counted and left out: two patients are never mixed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from services.api.ehr.record import (
    Allergy,
    Coded,
    Condition,
    Dosage,
    Encounter,
    Medication,
    Observation,
    Order,
    Record,
)

MOST_RESOURCES = 5000  # of one call; a body of two megabytes holds fewer
_MOST_DEPTH = 4  # Bundles inside Bundles
_TEXT = 200  # characters of one name; longer ones are notes, which are not read
_DATE = re.compile(r"(\d{4})(?:-(\d{2}))?(?:-(\d{2}))?")
_INACTIVE = frozenset({"inactive", "remission", "resolved"})
_UNTRUE = frozenset({"refuted", "entered-in-error"})
_TAKEN = frozenset({"active", "on-hold", "draft", ""})
_NO_ALLERGY = frozenset({"716186003", "1003774007", "409137002"})  # SNOMED CT: no known (drug) allergy
_PERIOD_DAYS = {"s": 1 / 86400, "min": 1 / 1440, "h": 1 / 24, "d": 1.0, "wk": 7.0, "mo": 30.0, "a": 365.0}
# http://terminology.hl7.org/CodeSystem/v3-GTSAbbreviation
_TIMES = {"BID": 2.0, "TID": 3.0, "QID": 4.0, "QD": 1.0, "AM": 1.0, "PM": 1.0, "BED": 1.0, "QOD": 0.5,
          "Q1H": 24.0, "Q2H": 12.0, "Q3H": 8.0, "Q4H": 6.0, "Q6H": 4.0, "Q8H": 3.0}  # fmt: skip


def read_record(patient_id: str, prefetch: Mapping[str, Any], wanted: Mapping[str, str], today: date) -> Record:
    """The patient from what the EHR sent. `wanted`: prefetch keys to the resource type that each brings.

    A key may be absent, null, an OperationOutcome (the EHR failed), a resource, or a Bundle, whole or its first page.
    """
    record = Record(patient_id)
    for key in wanted:
        if key not in prefetch:
            record.missing.append(key)
    for key, value in prefetch.items():
        for read, resource in enumerate(_resources(value, 0)):
            if read == MOST_RESOURCES:
                record.partial.append(key)
                break
            if resource.get("resourceType") == "OperationOutcome":
                record.failed.append(key)
            elif is_foreign(resource, patient_id):
                record.foreign += 1
            else:
                _read(resource, record, today, draft=False)
        if _has_next(value) and key not in record.partial:
            record.partial.append(key)
    return record


def add_orders(record: Record, bundle: Any, selections: frozenset[str] | None, today: date) -> None:
    """Draft orders into the record; with `selections` (`Type/id`) those alone. Another patient's are counted and left out."""
    for resource in _resources(bundle, 0):
        name = f"{_word(resource, 'resourceType')}/{_word(resource, 'id')}"
        if is_foreign(resource, record.patient_id):
            record.foreign_orders += 1
        elif selections is None or name in selections or _word(resource, "id") in selections:
            _read(resource, record, today, draft=True)


def is_foreign(resource: Mapping[str, Any], patient_id: str) -> bool:
    """Whether a resource says that it is another patient's. One that says nothing is taken for this patient's."""
    if resource.get("resourceType") == "Patient":
        return bool(resource.get("id")) and resource["id"] != patient_id
    for name in ("subject", "patient"):
        reference = _object(resource.get(name)).get("reference")
        if isinstance(reference, str) and "Patient/" in reference:
            return reference.rsplit("Patient/", 1)[1].split("/")[0] != patient_id
    return False


def _resources(value: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    if not isinstance(value, Mapping) or depth > _MOST_DEPTH:
        return
    if value.get("resourceType") != "Bundle":
        if isinstance(value.get("resourceType"), str):
            yield value
        return
    for entry in _list(value.get("entry")):
        yield from _resources(_object(entry).get("resource"), depth + 1)


def _has_next(value: Any) -> bool:
    links = _list(_object(value).get("link"))
    return any(_object(link).get("relation") == "next" for link in links)


def _read(resource: Mapping[str, Any], record: Record, today: date, *, draft: bool) -> None:
    kind = resource.get("resourceType")
    if kind == "Patient":
        _patient(resource, record, today)
    elif kind == "Condition":
        _condition(resource, record)
    elif kind == "Observation":
        _observation(resource, record)
    elif kind in ("MedicationRequest", "MedicationStatement", "MedicationOrder"):
        _medication(resource, record, draft)
    elif kind == "AllergyIntolerance":
        _allergy(resource, record)
    elif kind == "Encounter":
        _encounter(resource, record)
    elif draft and kind in (
        "ServiceRequest",
        "ProcedureRequest",
        "DeviceRequest",
        "NutritionOrder",
        "VisionPrescription",
    ):
        if text := coded(resource.get("code") or resource.get("codeCodeableConcept")):
            record.orders.append(Order(text, tuple(_texts(resource.get("reasonCode")))))
    else:
        record.unread += 1


def _patient(resource: Mapping[str, Any], record: Record, today: date) -> None:
    record.has_patient = True
    sex = resource.get("gender")
    record.sex = sex if sex in ("female", "male", "other") else ""
    record.deceased = bool(resource.get("deceasedBoolean") or resource.get("deceasedDateTime"))
    born = read_date(resource.get("birthDate"))
    if born is not None and born <= today:
        record.age_years = round((today - born).days / 365.25, 2)
    record.private |= private_words(resource)


def private_words(patient: Mapping[str, Any]) -> set[str]:
    """The patient's names, identifiers, birth date, telephone numbers and address, word by word."""
    found: set[str] = set()
    for name in _list(patient.get("name")):
        family, given = (
            _word(_object(name), "family"),
            [g for g in _list(_object(name).get("given")) if isinstance(g, str)],
        )
        found |= {family, *given, _word(_object(name), "text"), family + "".join(given)}  # 李 and 雷 are also 李雷
    for identifier in _list(patient.get("identifier")):
        found.add(_word(_object(identifier), "value"))
    for contact in _list(patient.get("telecom")):
        found.add(_word(_object(contact), "value"))
    for place in _list(patient.get("address")):
        known = _object(place)
        found |= {line for line in (*_list(known.get("line")), known.get("text"), known.get("postalCode")) if line}
    found |= {_word(patient, "birthDate"), _word(patient, "id")}
    for contact in _list(patient.get("contact")):  # next of kin
        found |= private_words({"name": [_object(contact).get("name")], "telecom": _object(contact).get("telecom")})
    return {word.strip() for word in found if isinstance(word, str) and len(word.strip()) > 1}


def _condition(resource: Mapping[str, Any], record: Record) -> None:
    if _status(resource, "verificationStatus") in _UNTRUE or not (what := coded(resource.get("code"))):
        return
    active = _status(resource, "clinicalStatus") not in _INACTIVE and not resource.get("abatementDateTime")
    since = read_date(resource.get("onsetDateTime")) or read_date(resource.get("recordedDate"))
    record.conditions.append(Condition(what, active, since))


def _observation(resource: Mapping[str, Any], record: Record) -> None:
    if resource.get("status") in ("entered-in-error", "cancelled"):
        return
    taken = read_date(resource.get("effectiveDateTime") or resource.get("issued"))
    taken = taken or read_date(_object(resource.get("effectivePeriod")).get("start"))
    for part in (resource, *_list(resource.get("component"))):
        if (found := _value(_object(part), taken)) is not None:
            record.observations.append(found)


def _value(part: Mapping[str, Any], taken: date | None) -> Observation | None:
    what = coded(part.get("code"))
    if what is None:
        return None
    quantity = _object(part.get("valueQuantity"))
    value = number(quantity.get("value"))
    unit = _word(quantity, "unit") or _word(quantity, "code")
    if value is None:
        value = number(part.get("valueInteger"))
    text = coded(part.get("valueCodeableConcept"))
    shown = text.text if text else _word(part, "valueString")
    if quantity.get("comparator") in ("<", ">", "<=", ">=") and value is not None:
        shown = f"{quantity['comparator']}{value:g} {unit}".strip()
    if value is None and not shown:
        return None
    flags = [code for one in _list(part.get("interpretation")) if (known := coded(one)) for _, code in known.codes]
    return Observation(what, value, unit[:20], shown, taken, flags[0][:4] if flags else "")


def _medication(resource: Mapping[str, Any], record: Record, draft: bool) -> None:
    what = coded(resource.get("medicationCodeableConcept")) or _by_reference(resource)
    if what is None or resource.get("doNotPerform") is True:
        record.unread += 1
        return
    active = draft or _word(resource, "status") in _TAKEN
    doses = tuple(_dosage(_object(one)) for one in _list(resource.get("dosageInstruction") or resource.get("dosage")))
    record.medications.append(Medication(what, active, draft, doses, _word(resource, "id")))


def _by_reference(resource: Mapping[str, Any]) -> Coded | None:
    reference = _object(resource.get("medicationReference"))
    held = _list(resource.get("contained"))
    name = _word(reference, "reference").removeprefix("#")
    for one in held:
        if _word(_object(one), "id") == name and (what := coded(_object(one).get("code"))):
            return what
    display = _word(reference, "display")
    return Coded(display) if display else None


def _dosage(dosage: Mapping[str, Any]) -> Dosage:
    amounts = [_object(one) for one in _list(dosage.get("doseAndRate"))] or [dosage]
    quantity = _object(amounts[0].get("doseQuantity"))
    if not quantity:
        quantity = _object(_object(amounts[0].get("doseRange")).get("high"))
    timing = _object(dosage.get("timing"))
    route = coded(dosage.get("route"))
    return Dosage(
        text=_word(dosage, "text"),
        each=number(quantity.get("value")),
        unit=_word(quantity, "unit") or _word(quantity, "code"),
        a_day=_times_a_day(timing),
        route=route.text if route else "",
    )


def _times_a_day(timing: Mapping[str, Any]) -> float | None:
    repeat = _object(timing.get("repeat"))
    count = number(repeat.get("frequencyMax")) or number(repeat.get("frequency"))
    period, days = number(repeat.get("period")) or 1.0, _PERIOD_DAYS.get(_word(repeat, "periodUnit"))
    if days and period > 0:
        return (count or 1.0) / (period * days)
    code = coded(timing.get("code"))
    return next((_TIMES[c.upper()] for _, c in code.codes if c.upper() in _TIMES), None) if code else None


def _allergy(resource: Mapping[str, Any], record: Record) -> None:
    if _status(resource, "verificationStatus") in _UNTRUE or _status(resource, "clinicalStatus") in _INACTIVE:
        return
    reactions = [_object(one) for one in _list(resource.get("reaction"))]
    what = coded(resource.get("code"))
    what = what or next((found for one in reactions if (found := coded(one.get("substance")))), None)
    if what is None:
        return
    if any(code in _NO_ALLERGY for _, code in what.codes):
        record.no_known_allergies = True
        return
    severe = resource.get("criticality") == "high" or any(one.get("severity") == "severe" for one in reactions)
    shown = [text for one in reactions for text in _texts(one.get("manifestation"))]
    record.allergies.append(Allergy(what, severe, tuple(shown[:4])))


def _encounter(resource: Mapping[str, Any], record: Record) -> None:
    kinds = [*_texts(resource.get("type")), _word(_object(resource.get("class")), "display")]
    ongoing = resource.get("status") in ("in-progress", "arrived", "triaged", "onleave")
    reasons = tuple(_texts(resource.get("reasonCode")))
    if reasons or any(kinds):
        record.encounters.append(Encounter(next((k for k in kinds if k), ""), ongoing, reasons))


# Values


def coded(value: Any) -> Coded | None:
    """A CodeableConcept's text, or its first display, or its first code; `None` where there is nothing to read."""
    concept = _object(value)
    codings = [_object(one) for one in _list(concept.get("coding"))][:8]
    codes = tuple((_word(one, "system"), _word(one, "code")) for one in codings if _word(one, "code"))
    names = [_word(concept, "text"), *(_word(one, "display") for one in codings), *(code for _, code in codes)]
    text = next((name for name in names if name), "")
    return Coded(text, codes) if text else None


def read_date(value: Any) -> date | None:
    """A FHIR date, dateTime or instant, to the day; a year or a month counts from its first day."""
    match = _DATE.match(value) if isinstance(value, str) else None
    if match is None:
        return None
    try:
        return date(int(match[1]), int(match[2] or 1), int(match[3] or 1))
    except ValueError:
        return None


def number(value: Any) -> float | None:
    """A finite number; text that is one counts, as some EHRs send decimals."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _word(holder: Mapping[str, Any], key: str) -> str:
    value = holder.get(key)
    return " ".join(value.split())[:_TEXT] if isinstance(value, str) else ""


def _status(resource: Mapping[str, Any], key: str) -> str:
    value = resource.get(key)
    if isinstance(value, str):  # as DSTU2 has it
        return value
    found = coded(value)
    return next((code for _, code in found.codes), "") if found else ""


def _texts(value: Any) -> list[str]:
    return [found.text for one in _list(value) if (found := coded(one))]
