"""Where a patient's name could end up: prompts, cards, logs, metrics, the audit trail, the feedback file, errors. It does not."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from services.api import logs
from services.api.ehr.hooks import REVIEW, SUMMARY
from tests.api.ehr.conftest import Door, prompt_of
from tests.api.ehr.patients import CANARIES, allergy, bundle, chart, condition, medicine, sign, view

SECRETS = ("access-canary-77", "dr-canary-88", "comment-canary-99")
GRANT = {"access_token": SECRETS[0], "token_type": "Bearer", "expires_in": 300, "scope": "s", "subject": "c"}


def poisoned() -> dict[str, Any]:
    """A chart in which the patient's own words stand everywhere."""
    words = " ".join(CANARIES)
    return chart(
        conditions=bundle(condition(f"高血压 {words}")),
        medications=bundle(medicine(f"华法林 {words}")),
        allergies=bundle(allergy(f"青霉素 {words}", reaction=[{"manifestation": [{"text": words}]}])),
    )


async def test_nothing_leaks(door: Door, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audit, feedback = tmp_path / "audit.jsonl", tmp_path / "feedback.jsonl"
    caplog.set_level(logging.DEBUG)
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(logs.JsonFormatter())
    logging.getLogger().addHandler(handler)
    try:
        async with door({"ehr_audit": str(audit), "ehr_feedback": str(feedback)}) as running:
            extra = {"fhirServer": "https://ehr.example.org/fhir", "fhirAuthorization": GRANT, "prefetch": poisoned()}
            order = sign(medicine(f"阿莫西林 {' '.join(CANARIES)}", "draft"), **extra)
            order["context"]["userId"] = f"Practitioner/{SECRETS[1]}"
            answers = [(await running.client.post(f"/cds-services/{REVIEW}", json=order)).text]
            broken = json.dumps(order, ensure_ascii=False).encode()[:-3]
            answers.append((await running.client.post(f"/cds-services/{REVIEW}", content=broken)).text)
            wrong = order | {"hook": CANARIES[0], "hookInstance": CANARIES[1]}
            answers.append((await running.client.post(f"/cds-services/{SUMMARY}", json=wrong)).text)
            card = json.loads(answers[0])["cards"][0]["uuid"]
            told = {"card": card, "outcome": "overridden", "outcomeTimestamp": "2026-11-24T08:00:00+08:00",
                    "overrideReason": {"reason": {"code": "aware"}, "userComment": SECRETS[2] + CANARIES[0]}}  # fmt: skip
            sent = await running.client.post(f"/cds-services/{REVIEW}/feedback", json={"feedback": [told]})
            assert sent.status_code == 200
            answers.append((await running.client.get("/metrics")).text)
            sinks = {
                "prompt": prompt_of(running),
                "answers": "".join(answers),
                "log": log.getvalue() + caplog.text + repr([r.__dict__ for r in caplog.records]),
                "audit": audit.read_text(),
                "feedback": feedback.read_text(),
            }
    finally:
        logging.getLogger().removeHandler(handler)
    assert "allergy:critical" in sinks["audit"]
    assert card in sinks["audit"]
    assert "aware" in sinks["feedback"]
    for name, text in sinks.items():
        assert len(text) > 20, name
        for word in (*CANARIES, "雷明", *SECRETS):
            assert word not in text, (name, word)


async def test_every_call_is_an_audit_event(door: Door, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    async with door({"ehr_audit": str(audit), "ehr_secret": "s"}) as running:
        call = view()
        for _ in range(2):
            await running.client.post(f"/cds-services/{SUMMARY}", json=call)
        await running.client.post(f"/cds-services/{SUMMARY}", json=call | {"prefetch": {}})
    events = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [e["outcome"] for e in events] == ["0", "0", "4"]
    for event in events:
        assert event["resourceType"] == "AuditEvent"
        assert event["type"]["code"] == "rest"
        assert event["action"] == "E"
        assert [a["requestor"] for a in event["agent"]] == [False, True, False]
        assert event["source"]["observer"]
        assert call["hookInstance"] in json.dumps(event)
    patients = {e["entity"][0]["what"]["identifier"]["value"] for e in events}
    assert len(patients) == 1
    assert "p1" not in patients


async def test_feedback_is_kept_once_also_after_a_restart(door: Door, tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    one = {"card": "c1", "outcome": "overridden", "outcomeTimestamp": "2026-11-24T08:00:00Z"}
    for _ in range(2):
        async with door({"ehr_feedback": str(path)}) as running:
            for body in ([one], [one, one | {"card": "c2"}], [one]):
                await running.client.post(f"/cds-services/{SUMMARY}/feedback", json={"feedback": body})
    assert [json.loads(line)["card"] for line in path.read_text().splitlines()] == ["c1", "c2"]
    assert path.stat().st_mode & 0o077 == 0


async def test_feedback_that_cannot_be_kept_is_to_be_sent_again(door: Door, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one = {"card": "c1", "outcome": "overridden", "outcomeTimestamp": "2026-11-24T08:00:00Z"}
    async with door({"ehr_feedback": str(tmp_path / "file" / "feedback.jsonl")}) as running:
        response = await running.client.post(f"/cds-services/{SUMMARY}/feedback", json={"feedback": [one]})
        assert response.status_code == 500
        assert response.json()["resourceType"] == "OperationOutcome"
