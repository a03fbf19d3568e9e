"""FHIR read tolerantly, and what of it reaches the model."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.ehr.fhir import add_orders, read_record
from services.api.ehr.patient_text import LIMIT_TOKENS, clean, patient_text
from services.contract.chat_format import ChatFormat
from tests.api.ehr.patients import (
    CANARIES,
    allergy,
    bundle,
    chart,
    condition,
    dosage,
    medicine,
    of,
    patient,
    sign,
    value,
)

WANTED = {
    "patient": "Patient",
    "conditions": "Condition",
    "observations": "Observation",
    "allergies": "AllergyIntolerance",
}
TODAY = date(2026, 11, 24)

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["resourceType", "code", "coding", "text", "value", "valueQuantity", "entry", "resource", "subject", "reference",
             "birthDate", "name", "gender", "dosageInstruction", "timing", "repeat", "reaction", "status", "component", "link"]
        ) | st.text(max_size=5),
        inner | st.sampled_from(["Bundle", "Patient", "Observation", "MedicationRequest", "Condition", "AllergyIntolerance"]),
        max_size=6,
    ),
    max_leaves=25,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(list(WANTED)), junk, max_size=4))
def test_nothing_that_an_ehr_sends_is_an_error(prefetch: dict[str, Any]) -> None:
    record = read_record("p1", prefetch, WANTED, TODAY)
    add_orders(record, prefetch.get("patient"), None, TODAY)
    assert patient_text(record, "en", len, TODAY)


@given(junk)
def test_a_broken_field_costs_that_field_alone(broken: Any) -> None:
    """A resource beside it is read as if nothing were wrong."""
    record = read_record(
        "p1", {"conditions": bundle({"resourceType": "Condition", "code": broken}, condition("asthma"))}, {}, TODAY
    )
    assert "asthma" in [c.what.text for c in record.conditions]


def test_a_whole_chart_is_read() -> None:
    record = read_record("p1", chart(), WANTED, TODAY)
    assert (record.sex, int(record.age_years or 0)) == ("male", 76)
    assert [c.what.text for c in record.conditions] == ["原发性高血压", "2型糖尿病"]
    assert [m.what.text for m in record.medications] == ["二甲双胍片0.5g"]
    assert [a.what.text for a in record.allergies] == ["青霉素"]
    assert (record.missing, record.partial, record.failed, record.foreign) == ([], [], [], 0)


def test_absent_null_failed_and_paged_data_are_told_apart() -> None:
    prefetch = {
        "patient": patient(),
        "conditions": None,
        "observations": bundle(value("x", 1, "y"), following="https://x/2"),
    }
    prefetch["allergies"] = {"resourceType": "OperationOutcome", "issue": []}
    del prefetch["conditions"]
    record = read_record("p1", prefetch, WANTED, TODAY)
    assert (record.missing, record.partial, record.failed) == (["conditions"], ["observations"], ["allergies"])
    assert read_record("p1", dict.fromkeys(WANTED), WANTED, TODAY).missing == []


def test_another_patients_resources_are_left_out() -> None:
    other = condition("epilepsy") | {"subject": {"reference": "https://ehr.example.org/fhir/Patient/p2"}}
    mine = condition("asthma") | {"subject": {"reference": "https://ehr.example.org/fhir/Patient/p1/_history/3"}}
    record = read_record("p1", {"conditions": bundle(other, mine), "patient": patient(id="p2")}, {}, TODAY)
    assert ([c.what.text for c in record.conditions], record.foreign, record.has_patient) == (["asthma"], 2, False)


def test_refuted_resolved_and_erroneous_facts_are_no_facts_of_today() -> None:
    resources = bundle(
        condition("asthma", clinicalStatus={"coding": [{"code": "resolved"}]}),
        condition("gout", verificationStatus={"coding": [{"code": "refuted"}]}),
        allergy("aspirin", verificationStatus={"coding": [{"code": "entered-in-error"}]}),
        of("Observation", status="entered-in-error", code={"text": "K"}, valueQuantity={"value": 9}),
        medicine("warfarin", status="stopped"),
    )
    record = read_record("p1", {"x": resources}, {}, TODAY)
    assert [(c.what.text, c.active) for c in record.conditions] == [("asthma", False)]
    assert not record.allergies
    assert not record.observations
    assert not any(m.active for m in record.medications)


@pytest.mark.parametrize(
    ("timing", "times"),
    [
        ({"repeat": {"frequency": 3, "period": 1, "periodUnit": "d"}}, 3.0),
        ({"repeat": {"frequency": 1, "period": 8, "periodUnit": "h"}}, 3.0),
        ({"repeat": {"frequency": 1, "period": 1, "periodUnit": "wk"}}, 1 / 7),
        ({"code": {"coding": [{"code": "BID"}]}}, 2.0),
        ({"repeat": {"frequency": 1, "period": 0, "periodUnit": "d"}}, 1.0),
        ({}, None),
    ],
)
def test_how_often_a_day(timing: dict[str, Any], times: float | None) -> None:
    order = medicine("x", dosageInstruction=[{"timing": timing}])
    found = read_record("p1", {"m": bundle(order)}, {}, TODAY).medications[0].dosages[0].a_day
    assert found == pytest.approx(times) if times else found is None


def test_selected_orders_alone_are_drafts() -> None:
    orders = bundle(medicine("aspirin") | {"id": "a"}, medicine("warfarin") | {"id": "b"})
    record = read_record("p1", {}, {}, TODAY)
    add_orders(record, orders, frozenset({"MedicationRequest/b"}), TODAY)
    assert [(m.what.text, m.draft) for m in record.medications] == [("warfarin", True)]


@pytest.mark.parametrize("language", ["zh", "en"])
def test_nothing_that_says_who_it_is_reaches_the_model(language: Any) -> None:
    """In the fields where it belongs, and in those where somebody typed it."""
    words = " ".join(CANARIES)
    prefetch = chart(
        conditions=bundle(condition(f"李雷明 高血压 {words}")),
        observations=bundle(value(f"血钾 {words}", 6.8, "13800138000")),
        encounters=bundle(of("Encounter", status="in-progress", reasonCode=[{"text": f"电话13912345678 {words}"}])),
    )
    record = read_record("p1", prefetch, WANTED, TODAY)
    add_orders(record, bundle(medicine(f"阿莫西林 {words}", dosageInstruction=[{"text": words}])), None, TODAY)
    text = patient_text(record, language, len, TODAY, 10**6)
    assert "高血压" in text
    assert "阿莫西林" in text
    assert "76" in text
    for word in (*CANARIES, "雷明", "13912345678", "2026-11"):
        assert word not in text, word


@given(st.text(alphabet="abc 李雷明0123456789X-", max_size=40))
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = clean(text, set(CANARIES))
    assert clean(once, set(CANARIES)) == once
    assert not any(word in once for word in CANARIES)


@pytest.mark.parametrize("profile", ["type2_diabetes", "hypertension"])
def test_a_real_sized_patient_fits(profile: str, chat_format: ChatFormat) -> None:
    """Fifty resources; the demo's tokenizer makes more tokens of English than Qwen3's does."""
    carebundle = pytest.importorskip("carebundle")
    whole = json.loads(
        carebundle.generate_bundle(profile=profile, seed=7).model_dump_json(exclude_none=True, by_alias=True)
    )
    record = read_record("p1", {"all": whole}, {}, TODAY)
    assert len(whole["entry"]) >= 30
    assert len(record.observations) >= 10
    assert record.has_patient
    text = patient_text(record, "en", lambda line: len(chat_format.encode_text(line)), TODAY)
    assert len(chat_format.encode_text(text)) <= LIMIT_TOKENS
    assert not any(word in text for word in record.private)


@given(st.integers(60, 400), st.lists(st.text("高血压糖尿病 abc", min_size=1, max_size=30), max_size=40))
def test_the_text_never_exceeds_its_limit(limit: int, names: list[str]) -> None:
    record = read_record("p1", {"c": bundle(*map(condition, names))}, {}, TODAY)
    assert len(patient_text(record, "zh", len, TODAY, limit)) <= limit


def test_the_worst_is_cut_last() -> None:
    many = bundle(*(condition(f"disease {n}") for n in range(500)))
    record = read_record("p1", {"c": many, "a": bundle(allergy("青霉素"))}, {}, TODAY)
    add_orders(
        record,
        sign(medicine("阿莫西林", dosageInstruction=[dosage(500, "mg", 3)]))["context"]["draftOrders"],
        None,
        TODAY,
    )
    text = patient_text(record, "zh", len, TODAY, 300)
    assert "青霉素" in text
    assert "阿莫西林" in text
    assert "从略" in text
