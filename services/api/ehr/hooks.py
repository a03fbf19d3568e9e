"""Which services there are, what each asks the EHR for, and a call's body read and checked (HL7 CDS Hooks 2.0)."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from services.api.ehr.findings import say
from services.api.ehr.outcomes import HookError
from services.api.messages import Language

SUMMARY: Final = "medthink-patient-summary"
REVIEW: Final = "medthink-order-review"
HOOKS: Final[Mapping[str, tuple[str, ...]]] = {SUMMARY: ("patient-view",), REVIEW: ("order-select", "order-sign")}
# Only searches by patient, token, _sort and _count: what every EHR can answer (the specification's own limits).
PREFETCH: Final = {
    "patient": "Patient/{{context.patientId}}",
    "conditions": "Condition?patient={{context.patientId}}&_count=100",
    "observations": "Observation?patient={{context.patientId}}&category=laboratory,vital-signs&_sort=-date&_count=100",
    "medications": "MedicationRequest?patient={{context.patientId}}&status=active&_count=100",
    "allergies": "AllergyIntolerance?patient={{context.patientId}}&_count=100",
    "encounters": "Encounter?patient={{context.patientId}}&status=in-progress&_count=5",
}
TYPES: Final = {
    "patient": "Patient",
    "conditions": "Condition",
    "observations": "Observation",
    "medications": "MedicationRequest",
    "allergies": "AllergyIntolerance",
    "encounters": "Encounter",
}
NECESSARY: Final = ("patient",)
MOST_ORDERS: Final = 200
_LONGEST_WORD = 512


@dataclass(frozen=True, slots=True)
class Call:
    """One hook call. `digest` is the body's, without the access token, which a retry may bring anew."""

    service: str
    hook: str
    instance: str
    patient_id: str
    user_id: str
    prefetch: Mapping[str, Any]
    draft_orders: Any
    selections: frozenset[str] | None
    digest: str


def discovery(language: Language) -> dict[str, Any]:
    """The answer of `GET /cds-services`: the review stands under one id for both order hooks, so that its cards replace each
    other (the specification's "update stale guidance")."""
    texts = {
        SUMMARY: (
            say(language, "MedThink 患者概要", "MedThink patient summary"),
            say(
                language,
                "打开病历时：危急值、警示症状，以及AI整理的概要。仅供医务人员参考。",
                "On opening a chart: critical values, red flags, and a summary by AI. For clinicians' reference only.",
            ),
        ),
        REVIEW: (
            say(language, "MedThink 医嘱审查", "MedThink order review"),
            say(
                language,
                "开医嘱与签医嘱时：过敏、妊娠、剂量、重复用药、相互作用。不生成处方。",
                "On selecting and signing orders: allergy, pregnancy, dose, duplicates, interactions. It never prescribes.",
            ),
        ),
    }
    needs = say(
        language,
        "需要 patient 预取数据；缺少其他数据时结果会注明。",
        "Needs the prefetch key patient; says so on its cards where other data are missing.",
    )
    services = [
        {"hook": hook, "title": texts[service][0], "description": texts[service][1], "id": service,
         "prefetch": dict(PREFETCH), "usageRequirements": needs, "version": "STU2"}
        for service, hooks in HOOKS.items()
        for hook in hooks
    ]  # fmt: skip
    return {"services": services}


def require_service(service: str) -> None:
    """Raises `HookError` 404 for an id that discovery does not list."""
    if service not in HOOKS:
        raise HookError(404, "There is no CDS service of this id: GET /cds-services lists them.")


def read_json(body: bytes) -> dict[str, Any]:
    """A JSON object; raises `HookError` 400, which tells where the JSON breaks and not what it holds."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise HookError(400, f"The body is not valid JSON (line {error.lineno}, column {error.colno}).") from None
    if not isinstance(value, dict):
        raise HookError(400, "The body must be a JSON object.")
    return value


def read_call(service: str, body: bytes) -> Call:
    """A checked call. Raises `HookError`: 400 for a body or a hook that does not fit the service."""
    value = read_json(body)
    hook = _text(value, "hook")
    if hook not in HOOKS[service]:
        raise HookError(400, f"This service answers {' and '.join(HOOKS[service])} only.", expression="hook")
    instance = _text(value, "hookInstance")
    try:
        uuid.UUID(instance)
    except ValueError:
        raise HookError(400, "hookInstance must be a UUID.", expression="hookInstance") from None
    context = value.get("context")
    if not isinstance(context, dict):
        raise HookError(400, "context must be an object.", expression="context")
    _check_server(value)
    prefetch = value.get("prefetch")
    if prefetch is not None and not isinstance(prefetch, dict):
        raise HookError(400, "prefetch must be an object.", expression="prefetch")
    orders, selections = _orders(hook, context)
    return Call(
        service,
        hook,
        instance,
        _text(context, "patientId", "context."),
        _text(context, "userId", "context."),
        {key: data for key, data in (prefetch or {}).items() if key in PREFETCH},
        orders,
        selections,
        _digest(value),
    )


def _check_server(value: Mapping[str, Any]) -> None:
    """`fhirServer` and `fhirAuthorization` are checked for form and then left alone: nothing is ever fetched."""
    server, grant = value.get("fhirServer"), value.get("fhirAuthorization")
    if server is not None and not isinstance(server, str):
        raise HookError(400, "fhirServer must be a URL.", expression="fhirServer")
    if grant is None:
        return
    if not isinstance(grant, dict):
        raise HookError(400, "fhirAuthorization must be an object.", expression="fhirAuthorization")
    if not server:
        raise HookError(400, "fhirServer must come with fhirAuthorization.", expression="fhirServer")


def _orders(hook: str, context: Mapping[str, Any]) -> tuple[Any, frozenset[str] | None]:
    if hook == "patient-view":
        return None, None
    orders = context.get("draftOrders")
    if not isinstance(orders, dict) or orders.get("resourceType") != "Bundle":
        raise HookError(400, "context.draftOrders must be a Bundle.", expression="context.draftOrders")
    entries = orders.get("entry")
    if isinstance(entries, list) and len(entries) > MOST_ORDERS:
        raise HookError(
            413, f"A call may bring at most {MOST_ORDERS} draft orders: send several.", expression="context.draftOrders"
        )
    if hook == "order-sign":
        return orders, None
    chosen = context.get("selections")
    if not isinstance(chosen, list) or not all(isinstance(one, str) for one in chosen):
        raise HookError(400, "context.selections must list the selected orders.", expression="context.selections")
    return orders, frozenset(chosen)


def _text(holder: Mapping[str, Any], key: str, where: str = "") -> str:
    found = holder.get(key)
    if not isinstance(found, str) or not found.strip() or len(found) > _LONGEST_WORD:
        raise HookError(400, f"{where}{key} must be a text that is not empty.", expression=f"{where}{key}")
    return found


def _digest(value: Mapping[str, Any]) -> str:
    kept = {key: part for key, part in value.items() if key != "fhirAuthorization"}
    return hashlib.sha256(orjson.dumps(kept, option=orjson.OPT_SORT_KEYS)).hexdigest()
