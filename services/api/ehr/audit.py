"""Each call as a FHIR R4 AuditEvent, one line of JSON: who asked, about whom (as a keyed hash), what was answered. No content."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from services.api import logs
from services.api.ehr.feedback import append
from services.api.ehr.hooks import Call
from services.api.ehr.review import Caller, Reviewed

log = logging.getLogger(__name__)

_TYPE: Final = "http://terminology.hl7.org/CodeSystem/audit-event-type"
_ROLE: Final = "http://terminology.hl7.org/CodeSystem/object-role"
_OBJECT: Final = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_DCM: Final = "http://dicom.nema.org/resources/ontology/DCM"


class AuditTrail:
    """Writes AuditEvents to a file; without a path, nothing. The patient and the user stand there as HMACs under `secret`."""

    def __init__(self, path: Path | None, secret: bytes) -> None:
        self._path = path
        self._secret = secret
        self._lock = threading.Lock()

    def write(self, call: Call, caller: Caller, status: int, reviewed: Reviewed | None) -> None:
        """A line that cannot be written is an error line in the log, and no reason to withhold cards."""
        if self._path is None:
            return
        line = json.dumps(self._event(call, caller, status, reviewed), ensure_ascii=False, separators=(",", ":"))
        try:
            with self._lock:
                append(self._path, line + "\n")
        except OSError as error:
            log.error("audit event not written to %s: %s", self._path, error)

    def _event(self, call: Call, caller: Caller, status: int, reviewed: Reviewed | None) -> dict[str, Any]:
        outcome = "0" if status < 400 else "4" if status < 500 else "8"
        server = {"display": "MedThink"}
        entities = [
            _entity("1", "1", {"value": self._hash("patient", caller.issuer, call.patient_id)}),
            _entity("2", "4", {"value": call.instance}, {"service": call.service, "hook": call.hook}),
        ]
        if reviewed is not None:
            entities.append(_entity("2", "4", {"value": logs.request_id.get()}, self._told(reviewed)))
        return {
            "resourceType": "AuditEvent",
            "type": {"system": _TYPE, "code": "rest", "display": "Restful Operation"},
            "subtype": [{"system": "http://hl7.org/fhir/restful-interaction", "code": "operation"}],
            "action": "E",
            "recorded": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "outcome": outcome,
            "agent": [
                {"type": _dcm("110153", "Source Role ID"), "who": {"display": caller.issuer}, "requestor": False},
                {
                    "type": {
                        "coding": [
                            {"system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType", "code": "IRCP"}
                        ]
                    },
                    "who": {"identifier": {"value": self._hash("user", caller.issuer, call.user_id)}},
                    "requestor": True,
                },
                {"type": _dcm("110152", "Destination Role ID"), "who": server, "requestor": False},
            ],
            "source": {"observer": server},
            "entity": entities,
        }

    def _told(self, reviewed: Reviewed) -> dict[str, str]:
        case = reviewed.case
        told = {
            "cards": ",".join(card["uuid"] for card in reviewed.cards),
            "findings": ",".join(f"{f.kind}:{f.level}" for f in reviewed.findings),
            "otherPatientResources": str(reviewed.foreign),
            "inTime": str(reviewed.in_time).lower(),
            "case": case.id if case else "",
            "model": case.model if case else "",
            "verdict": case.verdict if case else "",
        }
        return {name: value for name, value in told.items() if value}

    def _hash(self, kind: str, issuer: str, name: str) -> str:
        return hmac.new(self._secret, f"{kind}\0{issuer}\0{name}".encode(), hashlib.sha256).hexdigest()


def _entity(kind: str, role: str, identifier: dict[str, str], details: dict[str, str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "what": {"identifier": identifier},
        "type": {"system": _OBJECT, "code": kind},
        "role": {"system": _ROLE, "code": role},
    }
    if details:
        found["detail"] = [{"type": name, "valueString": value} for name, value in details.items()]
    return found


def _dcm(code: str, display: str) -> dict[str, Any]:
    return {"coding": [{"system": _DCM, "code": code, "display": display}]}
