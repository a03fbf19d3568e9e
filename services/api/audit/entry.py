"""An audit entry, from a request's trail: one JSON object, ours or FHIR's AuditEvent. Never any text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

from services.api.audit.trail import Trail

Form = Literal["json", "fhir"]
_SEVERITY = ("unchecked", "pass", "annotate", "amend", "block")

# HL7 FHIR R4, AuditEvent: https://hl7.org/fhir/R4/auditevent.html and its value sets.
_TYPE: Final = {
    "system": "http://terminology.hl7.org/CodeSystem/audit-event-type",
    "code": "rest",
    "display": "RESTful Operation",
}
_ACTION: Final = {"GET": "R", "HEAD": "R", "DELETE": "D", "POST": "E"}


def entry_json(trail: Trail) -> dict[str, Any]:
    """Our own form, one level deep but for what was judged."""
    return {
        "time": _instant(trail.began),
        "request_id": trail.request_id,
        "key": trail.caller,
        "client": trail.client,
        "method": trail.method,
        "route": trail.route,
        "status": trail.status,
        "complete": trail.complete,
        "error": trail.error,
        "seconds": round(trail.seconds, 4),
        "model": trail.model,
        "adapter": trail.adapter,
        "adapter_version": trail.adapter_version,
        "response_id": trail.response_id,
        "verdict": worst_verdict(trail),
        "judged": [
            {"choice": j.choice, "verdict": j.verdict, "rules": list(j.rules), "policy": j.policy} for j in trail.judged
        ],
        "input_tokens": trail.input_tokens,
        "output_tokens": trail.output_tokens,
        "request_hmac_sha256": trail.request_hash,
        "response_hmac_sha256": trail.response_hash,
    }


def worst_verdict(trail: Trail) -> str | None:
    """The strictest of all choices; `None` where nothing was judged."""
    return max((j.verdict for j in trail.judged), key=_SEVERITY.index, default=None)


def audit_event(trail: Trail) -> dict[str, Any]:
    """The same as a FHIR R4 AuditEvent: who asked as an agent, the model as another, facts as details of the entity."""
    agents: list[dict[str, Any]] = [{"requestor": True, "who": {"identifier": {"value": trail.caller or "unknown"}}}]
    if trail.client:
        agents[0]["network"] = {"address": trail.client, "type": "2"}
    if trail.model:
        version = f"@{trail.adapter_version}" if trail.adapter_version else ""
        agents.append({"requestor": False, "name": f"{trail.adapter or trail.model}{version}"})
    facts = entry_json(trail)
    shown = (
        "status",
        "complete",
        "error",
        "model",
        "response_id",
        "verdict",
        "request_hmac_sha256",
        "response_hmac_sha256",
    )
    details = [{"type": name, "valueString": str(facts[name])} for name in shown if facts[name] is not None]
    rules = sorted({rule for j in trail.judged for rule in j.rules})
    details += [{"type": "rule", "valueString": rule} for rule in rules]
    details += [{"type": "policy", "valueString": policy} for policy in sorted({j.policy for j in trail.judged})]
    return {
        "resourceType": "AuditEvent",
        "type": _TYPE,
        "action": _ACTION.get(trail.method, "E"),
        "recorded": _instant(trail.began),
        "outcome": _outcome(trail),
        "agent": agents,
        "source": {"observer": {"display": "MedThink"}},
        "entity": [
            {
                "what": {"identifier": {"value": trail.request_id}},
                "name": f"{trail.method} {trail.route}",
                "detail": details,
            }
        ],
    }


FORMS: Final[Mapping[Form, Callable[[Trail], dict[str, Any]]]] = {"json": entry_json, "fhir": audit_event}


def _outcome(trail: Trail) -> str:
    """0 success, 4 minor failure (the caller's), 8 serious failure (ours, or an answer that did not arrive)."""
    if trail.status >= 500 or not trail.complete:
        return "8"
    return "4" if trail.status >= 400 else "0"


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
