"""Synthetic patients and calls: shapes as EHRs send them. Nobody of these has ever lived."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

TODAY = datetime.now(UTC).date()
CANARIES = ("李雷明", "11010519491231002X", "13800138000", "1949-12-31", "幸福路88号", "MRN-4471-9902")


def patient(**fields: Any) -> dict[str, Any]:
    """A Patient with everything that must not get out."""
    return {
        "resourceType": "Patient",
        "id": "p1",
        "gender": "male",
        "birthDate": "1949-12-31",
        "name": [{"family": "李", "given": ["雷明"], "text": "李雷明"}],
        "identifier": [{"value": "11010519491231002X"}, {"value": "MRN-4471-9902"}],
        "telecom": [{"system": "phone", "value": "13800138000"}],
        "address": [{"line": ["幸福路88号"], "text": "北京市朝阳区幸福路88号"}],
    } | fields


def of(kind: str, **fields: Any) -> dict[str, Any]:
    return {"resourceType": kind, "subject": {"reference": "Patient/p1"}} | fields


def condition(text: str, **fields: Any) -> dict[str, Any]:
    return of("Condition", code={"text": text}, clinicalStatus={"coding": [{"code": "active"}]}) | fields


def value(text: str, number: float, unit: str, loinc: str | None = None, days: int = 0) -> dict[str, Any]:
    code: dict[str, Any] = {"text": text}
    if loinc:
        code["coding"] = [{"system": "http://loinc.org", "code": loinc}]
    taken = (TODAY - timedelta(days=days)).isoformat()
    return of("Observation", code=code, valueQuantity={"value": number, "unit": unit}, effectiveDateTime=taken)


def medicine(text: str, status: str = "active", **fields: Any) -> dict[str, Any]:
    return of("MedicationRequest", status=status, intent="order", medicationCodeableConcept={"text": text}) | fields


def dosage(each: float, unit: str, times: float, per: str = "d", route: str = "口服") -> dict[str, Any]:
    return {
        "doseAndRate": [{"doseQuantity": {"value": each, "unit": unit}}],
        "timing": {"repeat": {"frequency": times, "period": 1, "periodUnit": per}},
        "route": {"text": route},
    }


def allergy(text: str, **fields: Any) -> dict[str, Any]:
    return {
        "resourceType": "AllergyIntolerance",
        "patient": {"reference": "Patient/p1"},
        "code": {"text": text},
    } | fields


def bundle(*resources: dict[str, Any], following: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "resourceType": "Bundle",
        "type": "searchset",
        "entry": [{"resource": r} for r in resources],
    }
    if following:
        found["link"] = [{"relation": "next", "url": following}]
    return found


def chart(**fields: Any) -> dict[str, Any]:
    """The prefetch of one chart, every key there."""
    return {
        "patient": patient(),
        "conditions": bundle(condition("原发性高血压"), condition("2型糖尿病")),
        "observations": bundle(value("血钾", 4.2, "mmol/L")),
        "medications": bundle(medicine("二甲双胍片0.5g")),
        "allergies": bundle(allergy("青霉素")),
        "encounters": bundle(),
    } | fields


def view(**fields: Any) -> dict[str, Any]:
    """A patient-view call."""
    return {
        "hook": "patient-view",
        "hookInstance": str(uuid.uuid4()),
        "context": {"userId": "Practitioner/dr1", "patientId": "p1"},
        "prefetch": chart(),
    } | fields


def sign(*orders: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """An order-sign call."""
    context = {"userId": "Practitioner/dr1", "patientId": "p1", "draftOrders": bundle(*orders)}
    return view(hook="order-sign", context=context) | fields
