"""The MUSTs and SHALLs of CDS Hooks 2.0 for a service, against the running server."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from services.api.ehr.hooks import REVIEW, SUMMARY
from tests.api.ehr.conftest import Door, prompt_of
from tests.api.ehr.judging import check_cards, check_outcome, holes
from tests.api.ehr.patients import allergy, bundle, chart, dosage, medicine, patient, sign, value, view
from tests.running import Running


@pytest.fixture
async def running(door: Door) -> AsyncIterator[Running]:
    async with door() as found:
        yield found


async def post(running: Running, service: str, body: Any) -> httpx.Response:
    return await running.client.post(f"/cds-services/{service}", json=body)


async def test_discovery(running: Running) -> None:
    response = await running.client.get("/cds-services")
    assert response.status_code == 200
    body = response.json()
    assert set(body) == {"services"}
    assert holes(body) == []
    named = [(s["id"], s["hook"]) for s in body["services"]]
    assert named == [(SUMMARY, "patient-view"), (REVIEW, "order-select"), (REVIEW, "order-sign")]
    for service in body["services"]:
        assert service["description"]
        assert service["title"]
        assert service["version"] == "STU2"
        for query in service["prefetch"].values():
            assert set(re.findall(r"\{\{(.*?)\}\}", query)) == {"context.patientId"}
            for parameter in re.findall(r"[?&](\w+)=", query):
                assert parameter in {"patient", "status", "category", "_count", "_sort"}


@pytest.mark.parametrize("language", ["zh-CN", "en"])
async def test_cards_of_a_quiet_chart(running: Running, language: str) -> None:
    running.client.headers["accept-language"] = language
    cards = check_cards(await post(running, SUMMARY, view()))
    assert [c["indicator"] for c in cards] == ["info"]
    assert cards[0]["summary"].startswith("患者有高血压")
    assert "http" not in cards[0]["detail"]


@pytest.mark.parametrize("hook", ["order-select", "order-sign"])
async def test_an_order_against_an_allergy_is_critical_at_both_hooks(running: Running, hook: str) -> None:
    call = sign(medicine("阿莫西林胶囊", "draft") | {"id": "o1"}, hook=hook)
    if hook == "order-select":
        call["context"]["selections"] = ["MedicationRequest/o1"]
    cards = check_cards(await post(running, REVIEW, call))
    assert [c["indicator"] for c in cards] == ["critical", "info"]
    assert "阿莫西林" in cards[0]["summary"]


async def test_many_findings_are_three_cards_and_none_is_lost(running: Running) -> None:
    orders = [
        medicine(n, "draft") for n in ("阿莫西林胶囊", "青霉素V钾片", "布洛芬片", "双氯芬酸钠肠溶片", "二甲双胍片")
    ]
    orders.append(medicine("对乙酰氨基酚片", "draft", dosageInstruction=[dosage(2, "g", 4)]))
    labs = bundle(value("血钾", 6.9, "mmol/L"))
    cards = check_cards(await post(running, REVIEW, sign(*orders, prefetch=chart(observations=labs))))
    assert [c["indicator"] for c in cards][:2] == ["critical", "critical"]
    assert cards[2]["indicator"] in ("info", "warning")
    told = cards[0]["summary"] + cards[1]["summary"] + cards[1]["detail"]
    for name in ("阿莫西林", "双氯芬酸", "二甲双胍", "对乙酰氨基酚", "血钾"):
        assert name in told


async def test_no_words_of_a_model_are_ever_critical(door: Door, pen: Any) -> None:
    wild = (
        "CRITICAL 危急！<script>x</script> [点](https://evil.example) ![x](http://evil.example/a.png) www.evil.example"
    )
    async with door(reply=pen.answer(wild)) as running:
        cards = check_cards(await post(running, SUMMARY, view()))
    assert all(c["indicator"] != "critical" for c in cards)
    assert "evil.example" not in cards[0]["detail"] + cards[0]["summary"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"hook": "order-sign"}, 400),
        ({"hook": None}, 400),
        ({"hookInstance": "not-a-uuid"}, 400),
        ({"hookInstance": None}, 400),
        ({"context": None}, 400),
        ({"context": {"userId": "Practitioner/1"}}, 400),
        ({"context": {"userId": "", "patientId": "p1"}}, 400),
        ({"prefetch": []}, 400),
        ({"fhirAuthorization": {"access_token": "x"}}, 400),
        ({"prefetch": None}, 412),
        ({"prefetch": {}}, 412),
        ({"prefetch": {"patient": None}}, 412),
        ({"prefetch": {"patient": {"resourceType": "OperationOutcome"}}}, 412),
        ({"prefetch": {"patient": patient(id="p2")}}, 412),
    ],
)
async def test_what_does_not_fit_is_told_by_an_operation_outcome(
    running: Running, change: dict[str, Any], status: int
) -> None:
    body = {key: inner for key, inner in (view() | change).items() if inner is not None}
    check_outcome(await post(running, SUMMARY, body), status)
    assert running.engine.asked == []


async def test_broken_bodies_and_unknown_services(running: Running) -> None:
    url = f"/cds-services/{SUMMARY}"
    check_outcome(await running.client.post(url, content=b'{"hook": '), 400)
    check_outcome(await running.client.post(url, content=b"[]"), 400)
    check_outcome(await running.client.post(url, content=b"{}", headers={"content-type": "text/plain"}), 415)
    check_outcome(await running.client.post(url, content=b'{"a":"' + b"x" * (2 * 1024 * 1024) + b'"}'), 413)
    check_outcome(await post(running, "nothing", view()), 404)
    check_outcome(await running.client.post("/cds-services/nothing/feedback", json={"feedback": []}), 404)


@pytest.mark.parametrize("key", ["conditions", "observations", "medications", "allergies", "encounters"])
async def test_missing_optional_data_degrade_and_are_told(running: Running, key: str) -> None:
    prefetch = chart()
    del prefetch[key]
    cards = check_cards(await post(running, SUMMARY, view(prefetch=prefetch)))
    assert key in cards[-1]["detail"]


async def test_a_first_page_is_told_to_be_one(running: Running) -> None:
    paged = chart(allergies=bundle(allergy("青霉素"), following="https://ehr.example.org/fhir/2"))
    cards = check_cards(await post(running, SUMMARY, view(prefetch=paged)))
    assert "allergies" in cards[-1]["detail"]


async def test_an_order_of_another_patient_is_flagged_and_left_out(running: Running) -> None:
    order = medicine("阿莫西林胶囊", "draft") | {"subject": {"reference": "Patient/p2"}}
    cards = check_cards(await post(running, REVIEW, sign(order)))
    assert [c["indicator"] for c in cards] == ["warning", "info"]
    assert "青霉素" in prompt_of(running)
    assert "阿莫西林" not in prompt_of(running) + "".join(c["summary"] + c["detail"] for c in cards)


@pytest.mark.parametrize("orders", [None, {}, []])
async def test_an_order_hook_without_draft_orders_is_refused(running: Running, orders: Any) -> None:
    call = sign()
    call["context"]["draftOrders"] = orders
    check_outcome(await post(running, REVIEW, call), 400)


FEEDBACK = {"card": str(uuid.uuid4()), "outcome": "overridden", "outcomeTimestamp": "2026-11-24T08:00:00Z"}


async def test_feedback_of_several_cards_and_again(running: Running) -> None:
    url = f"/cds-services/{SUMMARY}/feedback"
    accepted = FEEDBACK | {"card": "c2", "outcome": "accepted", "acceptedSuggestions": [{"id": "s1"}]}
    for _ in range(2):
        response = await running.client.post(url, json={"feedback": [FEEDBACK, accepted]})
        assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize(
    "change", [{"card": ""}, {"outcome": "maybe"}, {"outcomeTimestamp": "noon"}, {"outcome": "accepted"}, {"card": 7}]
)
async def test_bad_feedback_is_refused(running: Running, change: dict[str, Any]) -> None:
    url = f"/cds-services/{SUMMARY}/feedback"
    check_outcome(await running.client.post(url, json={"feedback": [FEEDBACK | change]}), 400)
    check_outcome(await running.client.post(url, json={"feedback": []}), 400)
