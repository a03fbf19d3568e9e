"""Cards that tables write: they hold with any weights."""

from __future__ import annotations

from typing import Any

import pytest

from services.api.ehr.critical import find_problems, unknown_orders
from services.api.ehr.fhir import add_orders, read_record
from services.api.ehr.findings import Finding
from services.api.safety.policy import Policy, read_policy
from tests.api.ehr.patients import TODAY, allergy, bundle, chart, condition, dosage, medicine, of, patient, value


@pytest.fixture(scope="module")
def policy() -> Policy:
    return read_policy()


def found(policy: Policy, *orders: dict[str, Any], language: Any = "zh", **prefetch: Any) -> list[Finding]:
    record = read_record("p1", chart(allergies=bundle()) | prefetch, {}, TODAY)
    add_orders(record, bundle(*orders), None, TODAY)
    return find_problems(record, policy, language, TODAY)


def levels(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(f.kind, f.level) for f in findings]


@pytest.mark.parametrize(
    ("told", "ordered", "expected"),
    [
        ("青霉素", "阿莫西林胶囊0.5g", [("allergy", "critical")]),
        ("Penicillin", "Amoxicillin 500 mg tablet", [("allergy", "critical")]),
        ("磺胺类", "复方磺胺甲噁唑片", [("allergy", "critical")]),
        ("青霉素", "氯雷他定片10mg", []),
        ("花粉", "阿莫西林胶囊", []),
    ],
)
def test_allergy_against_order(policy: Policy, told: str, ordered: str, expected: list[Any]) -> None:
    assert levels(found(policy, medicine(ordered, "draft"), allergies=bundle(allergy(told)))) == expected


@pytest.mark.parametrize(
    ("each", "unit", "times", "name", "expected"),
    [
        (1000, "mg", 6, "对乙酰氨基酚片", [("dose", "critical")]),
        (500, "mg", 3, "对乙酰氨基酚片", []),
        (4, "片", 4, "对乙酰氨基酚片0.5g", [("dose", "critical")]),
        (1, "片", 3, "对乙酰氨基酚片0.5g", []),
        (10, "mg", 1, "甲氨蝶呤片", [("dose", "critical")]),  # weekly drug ordered daily
        (5, "mL", 3, "对乙酰氨基酚混悬液", []),
    ],
)
def test_dose(policy: Policy, each: float, unit: str, times: float, name: str, expected: list[Any]) -> None:
    order = medicine(name, "draft", dosageInstruction=[dosage(each, unit, times)])
    kinds = [x for x in levels(found(policy, order)) if x[0] == "dose"]
    assert kinds == expected


def test_a_dose_in_words_is_read(policy: Policy) -> None:
    order = medicine("对乙酰氨基酚片0.5g", "draft", dosageInstruction=[{"text": "每次4片，每日4次，口服"}])
    assert ("dose", "critical") in levels(found(policy, order))


def test_another_route_has_another_ceiling(policy: Policy) -> None:
    order = medicine("庆大霉素", "draft", dosageInstruction=[dosage(100000, "mg", 1, route="外用")])
    assert levels(found(policy, order)) == []


@pytest.mark.parametrize(
    ("sign", "expected"),
    [
        (condition("妊娠22周"), [("pregnancy", "critical")]),
        (condition("x", code={"text": "supervision", "coding": [{"code": "Z34.0"}]}), [("pregnancy", "critical")]),
        (condition("妊娠史"), []),
        (condition("not pregnant"), []),
    ],
)
def test_pregnancy(policy: Policy, sign: dict[str, Any], expected: list[Any]) -> None:
    woman = patient(gender="female", birthDate="1995-02-01")
    order = medicine("利巴韦林胶囊", "draft")
    kinds = [x for x in levels(found(policy, order, patient=woman, conditions=bundle(sign))) if x[0] == "pregnancy"]
    assert kinds == expected


def test_duplicates_and_interactions(policy: Policy) -> None:
    taken = bundle(medicine("华法林片3mg"))
    assert ("duplicate", "critical") in levels(found(policy, medicine("利伐沙班片", "draft"), medications=taken))
    renewed = levels(found(policy, medicine("二甲双胍片", "draft")))
    assert renewed == [("duplicate", "warning")]
    stopped = bundle(medicine("华法林片3mg", "stopped"))
    assert levels(found(policy, medicine("利伐沙班片", "draft"), medications=stopped)) == []


def test_two_orders_of_one_call_are_held_against_each_other(policy: Policy) -> None:
    pair = (medicine("布洛芬缓释胶囊", "draft"), medicine("双氯芬酸钠肠溶片", "draft"))
    assert ("duplicate", "critical") in levels(found(policy, *pair))


@pytest.mark.parametrize(
    ("one", "critical"),
    [
        (value("血钾", 6.8, "mmol/L"), True),
        (value("Potassium [Moles/volume] in Serum or Plasma", 6.8, "mmol/L", "2823-3"), True),
        (value("Potassium", 4.1, "mmol/L", "2823-3"), False),
        (value("Glucose", 620, "mg/dL", "2345-7"), True),
        (value("Glucose", 110, "mg/dL", "2345-7"), False),
        (value("Creatinine", 9.5, "mg/dL", "2160-0"), True),
        (value("Hemoglobin", 14.9, "g/dL", "718-7"), False),
        (value("Hemoglobin", 4.2, "g/dL", "718-7"), True),
        (value("Platelets", 8, "10*3/uL", "777-3"), True),
        (value("Potassium in urine", 60, "mmol/L", "2828-2"), False),
        (value("尿钾", 60, "mmol/L"), False),
        (value("舒张压", 60, "mmHg"), False),
        (value("Systolic blood pressure", 232, "mmHg", "8480-6"), True),
        (value("Diastolic blood pressure", 62, "mmHg", "8462-4"), False),
        (value("血钾", 6.8, "mmol/L", days=40), False),
    ],
)
def test_critical_values(policy: Policy, one: dict[str, Any], critical: bool) -> None:
    expected = [("laboratory", "critical")] if critical else []
    assert levels(found(policy, observations=bundle(one))) == expected


def test_the_latest_value_counts(policy: Policy) -> None:
    old, new = value("血钾", 6.8, "mmol/L", days=2), value("血钾", 4.4, "mmol/L", days=1)
    assert found(policy, observations=bundle(old, new)) == []
    assert found(policy, observations=bundle(new, old)) == []


def test_the_laboratorys_own_flag_counts(policy: Policy) -> None:
    flagged = value("血镁", 0.3, "mmol/L") | {"interpretation": [{"coding": [{"code": "LL"}]}]}
    assert levels(found(policy, observations=bundle(flagged))) == [("laboratory", "critical")]


def test_a_red_flag_in_the_reason_for_the_visit(policy: Policy) -> None:
    now = of("Encounter", status="in-progress", reasonCode=[{"text": "突发胸痛伴大汗，向左臂放射1小时"}])
    past = now | {"status": "finished"}
    assert levels(found(policy, encounters=bundle(now))) == [("red_flag", "critical")]
    assert found(policy, encounters=bundle(past)) == []


def test_an_order_of_another_patient_is_told_and_not_reviewed(policy: Policy) -> None:
    order = medicine("阿莫西林胶囊", "draft") | {"subject": {"reference": "Patient/p2"}}
    assert levels(found(policy, order, allergies=bundle(allergy("青霉素")))) == [("other_patient", "warning")]


def test_an_order_that_the_table_does_not_know_is_counted(policy: Policy) -> None:
    record = read_record("p1", chart(), {}, TODAY)
    add_orders(record, bundle(medicine("神秘药丸", "draft"), medicine("阿司匹林肠溶片", "draft")), None, TODAY)
    assert unknown_orders(record, policy) == 1


@pytest.mark.parametrize("language", ["zh", "en"])
def test_every_finding_fits_a_card(policy: Policy, language: Any) -> None:
    order = medicine("阿莫西林", "draft", dosageInstruction=[dosage(9, "g", 4)])
    for finding in found(policy, order, language=language, allergies=bundle(allergy("青霉素" * 60))):
        assert finding.summary
        assert finding.detail


def test_a_drug_that_is_told_by_its_atc_code_alone_is_known(policy: Policy) -> None:
    def coded(atc: str) -> dict[str, Any]:
        return {"coding": [{"system": "http://www.whocc.no/atc", "code": atc}]}

    order = medicine("", "draft", medicationCodeableConcept=coded("J01CA04"))
    assert levels(found(policy, order, allergies=bundle(allergy("", code=coded("J01CE01"))))) == [
        ("allergy", "critical")
    ]
    assert levels(found(policy, order, allergies=bundle(allergy("", code=coded("C09AA03"))))) == []
