"""The drug table: complete, sourced, unambiguous, and refused where malformed."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from services.api.safety.drugs import (
    CLASSES,
    DRUGS,
    Drug,
    DrugTable,
    DrugTableError,
    Names,
    Vocabulary,
    normalise,
)

TABLE = DrugTable.load()
LINES = DRUGS.read_text(encoding="utf-8").splitlines()
ROWS = [json.loads(line) for line in LINES]
each_drug = pytest.mark.parametrize("drug", TABLE.drugs, ids=lambda drug: drug.inn)


def find(name: str) -> Drug:
    return TABLE.names()[normalise(name)]


def test_the_table_is_large_enough() -> None:
    assert len(TABLE.drugs) >= 220


@each_drug
def test_a_row_is_sourced_and_coded(drug: Drug) -> None:
    assert len(drug.source) > 10
    assert re.match(r"https://(atcddd\.fhi\.no|dailymed\.nlm\.nih\.gov|pubmed\.ncbi\.nlm\.nih\.gov)/", drug.source_url)
    if drug.atc is None:
        assert "herb" in drug.classes
        assert TABLE.address(drug) == drug.source_url
    else:
        assert re.fullmatch(r"[A-Z]\d\d[A-Z][A-Z]\d\d", drug.atc)
        assert drug.atc in drug.source
        assert TABLE.address(drug).endswith(f"?code={drug.atc}")


@each_drug
def test_a_row_is_written_as_the_readers_of_the_table_expect(drug: Drug) -> None:
    assert re.search(r"[\u4e00-\u9fff]", drug.zh)
    assert drug.inn.isascii()
    assert all(len(name) > 1 for name in drug.all_names), "one character is found in too many words"
    for dose in (drug.max_daily, drug.max_single):
        assert dose is None or dose.value > 0
    if drug.max_single is not None:
        assert drug.max_single.per == "day" or drug.max_daily is not None
    assert drug.max_daily is not None or drug.dose_note


def test_no_code_is_used_twice() -> None:
    codes = [drug.atc for drug in TABLE.drugs if drug.atc]
    assert sorted(set(codes)) == sorted(codes)


def test_every_name_leads_to_one_drug() -> None:
    names = [normalise(name) for drug in TABLE.drugs for name in drug.all_names]
    assert sorted(set(names)) == sorted(names)
    assert len(TABLE.names()) == len(names)
    assert len(TABLE.by_inn) == len(TABLE.drugs)


def test_every_class_is_named_and_has_members() -> None:
    owners: dict[str, str] = {}
    for class_id, names in (*TABLE.class_names.items(), *TABLE.substances.items()):
        assert names.zh, class_id
        assert names.en, class_id
        for name in map(normalise, (*names.zh, *names.en)):
            assert owners.setdefault(name, class_id) == class_id, f"{name} names two classes"
    assert all(TABLE.members(class_id) for class_id in TABLE.class_names)


def test_ordinary_words_are_names_of_drugs() -> None:
    assert TABLE.ordinary_words <= TABLE.names().keys()


@pytest.mark.parametrize(
    ("name", "inn"),
    [
        ("Tylenol", "paracetamol"),
        ("泰诺", "paracetamol"),
        ("acetaminophen", "paracetamol"),
        ("扑热息痛", "paracetamol"),
        ("芬必得", "ibuprofen"),
        ("拜阿司匹林", "acetylsalicylic acid"),
        ("aspirin", "acetylsalicylic acid"),
        ("阿莫西林克拉维酸", "amoxicillin and clavulanic acid"),
        ("万艾可", "sildenafil"),
        ("LIPITOR", "atorvastatin"),
        ("青霉素", "benzylpenicillin"),
        ("复方新诺明", "sulfamethoxazole and trimethoprim"),
        ("优甲乐", "levothyroxine sodium"),
        ("硝酸甘油", "glyceryl trinitrate"),
        ("epinephrine", "adrenaline"),
        ("安定", "diazepam"),
        ("碘海醇", "iohexol"),
        ("利多卡因", "lidocaine"),
        ("异维A酸", "isotretinoin"),
        ("雷公藤", "tripterygium wilfordii"),
        ("附子", "aconitum carmichaelii, lateral root"),
        ("何首乌", "polygonum multiflorum"),
        ("St John's  Wort", "hyperici herba"),
    ],
)
def test_people_find_a_drug_by_the_name_they_know(name: str, inn: str) -> None:
    assert find(name) is TABLE.by_inn[inn]


@pytest.mark.parametrize(
    ("name", "mg", "per"),
    [
        ("paracetamol", 4000, "day"),
        ("ibuprofen", 2400, "day"),
        ("metformin", 2550, "day"),
        ("colchicine", 1.8, "day"),
        ("methotrexate", 25, "week"),
        ("alendronic acid", 70, "week"),
        ("semaglutide", 2.4, "week"),
        ("simvastatin", 40, "day"),
        ("levothyroxine", 0.3, "day"),
        ("zolpidem", 10, "day"),
        ("tramadol", 400, "day"),
        ("celecoxib", 400, "day"),
        ("sertraline", 200, "day"),
        ("rivaroxaban", 30, "day"),
        ("草乌", 3000, "day"),
    ],
)
def test_ceilings(name: str, mg: float, per: str) -> None:
    dose = find(name).max_daily
    assert dose is not None
    assert dose.mg == pytest.approx(mg)
    assert dose.per == per


def test_notes_say_which_ceiling_was_taken() -> None:
    assert "3.2 g" in (find("ibuprofen").dose_note or "")
    assert "ONCE A WEEK" in (find("methotrexate").dose_note or "")


@pytest.mark.parametrize(
    "name", ["warfarin", "morphine", "valproic acid", "isotretinoin", "insulin glargine", "胰岛素"]
)
def test_individual_doses_have_no_ceiling(name: str) -> None:
    assert find(name).max_daily is None


@pytest.mark.parametrize(
    "name",
    [
        "isotretinoin",
        "acitretin",
        "thalidomide",
        "lenalidomide",
        "methotrexate",
        "warfarin",
        "valproate",
        "enalapril",
        "losartan",
        "misoprostol",
        "mifepristone",
        "leflunomide",
        "ribavirin",
        "finasteride",
        "dutasteride",
        "testosterone",
        "danazol",
        "ergotamine",
        "bosentan",
        "ambrisentan",
        "macitentan",
        "riociguat",
        "mycophenolate",
        "雷公藤",
        "草乌",
    ],
)
def test_contraindicated_in_pregnancy(name: str) -> None:
    assert find(name).pregnancy.status == "contraindicated"


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("ibuprofen", "trimester"),
        ("methimazole", "trimester"),
        ("trimethoprim", "trimester"),
        ("doxycycline", "avoid"),
        ("levofloxacin", "avoid"),
        ("atorvastatin", "avoid"),
        ("lithium", "caution"),
        ("paracetamol", "compatible"),
        ("methyldopa", "compatible"),
        ("insulin glargine", "compatible"),
    ],
)
def test_pregnancy_otherwise(name: str, status: str) -> None:
    assert find(name).pregnancy.status == status


@pytest.mark.parametrize("class_id", ["acei", "arb", "retinoid", "endothelin_antagonist"])
def test_whole_classes_contraindicated_in_pregnancy(class_id: str) -> None:
    assert {drug.pregnancy.status for drug in TABLE.members(class_id)} == {"contraindicated"}


@pytest.mark.parametrize(
    "class_id",
    ["corticosteroid_systemic", "benzodiazepine", "antiepileptic", "opioid", "ssri", "snri", "barbiturate"],
)
def test_classes_that_must_be_tapered(class_id: str) -> None:
    assert all(drug.taper for drug in TABLE.members(class_id))


@pytest.mark.parametrize("name", ["metoprolol", "clonidine", "baclofen", "paroxetine", "强的松"])
def test_drugs_that_must_be_tapered(name: str) -> None:
    assert find(name).taper


@pytest.mark.parametrize("name", ["paracetamol", "amoxicillin", "timolol", "布地奈德"])
def test_drugs_that_need_no_tapering(name: str) -> None:
    assert not find(name).taper


@pytest.mark.parametrize(
    ("allergen", "recommended"),
    [
        ("amoxicillin", "ampicillin"),
        ("青霉素", "头孢克肟"),
        ("diclofenac", "indometacin"),
        ("aspirin", "ibuprofen"),
        ("复方新诺明", "塞来昔布"),
        ("carbamazepine", "oxcarbazepine"),
        ("levofloxacin", "moxifloxacin"),
        ("iohexol", "iopromide"),
    ],
)
def test_cross_allergy(allergen: str, recommended: str) -> None:
    assert set(find(allergen).classes) & set(find(recommended).cross_allergy)


@pytest.mark.parametrize(
    ("allergen", "recommended"), [("amoxicillin", "azithromycin"), ("ibuprofen", "paracetamol"), ("头孢", "左氧氟沙星")]
)
def test_unrelated_allergies(allergen: str, recommended: str) -> None:
    classes = {"cephalosporin"} if allergen == "头孢" else set(find(allergen).classes)
    assert not classes & set(find(recommended).cross_allergy)


@pytest.mark.parametrize(
    ("first", "second", "level"),
    [
        ("sildenafil", "硝酸甘油", "contraindicated"),
        ("sildenafil", "isosorbide mononitrate", "contraindicated"),
        ("phenelzine", "fluoxetine", "contraindicated"),
        ("selegiline", "pethidine", "contraindicated"),
        ("tramadol", "moclobemide", "contraindicated"),
        ("linezolid", "sertraline", "contraindicated"),
        ("simvastatin", "clarithromycin", "contraindicated"),
        ("colchicine", "clarithromycin", "contraindicated"),
        ("methotrexate", "trimethoprim", "contraindicated"),
        ("febuxostat", "azathioprine", "contraindicated"),
        ("warfarin", "naproxen", "avoid"),
        ("ibuprofen", "diclofenac", "avoid"),
        ("oxycodone", "alprazolam", "avoid"),
        ("enalapril", "valsartan", "avoid"),
        ("omeprazole", "clopidogrel", "avoid"),
    ],
)
def test_dangerous_combinations_are_found_both_ways(first: str, second: str, level: str) -> None:
    for one, other in ((first, second), (second, first)):
        assert TABLE.conflicts(find(one), find(other))[0].level == level


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("aspirin", "clopidogrel"),
        ("paracetamol", "ibuprofen"),
        ("metformin", "glimepiride"),
        ("adapalene", "doxycycline"),
        ("enalapril", "bisoprolol"),
        ("amoxicillin", "clarithromycin"),
    ],
)
def test_usual_combinations_are_no_conflict(first: str, second: str) -> None:
    assert TABLE.conflicts(find(first), find(second)) == ()


@pytest.mark.parametrize("name", ["metronidazole", "cefoperazone", "disulfiram", "diazepam", "metformin"])
def test_dangerous_with_alcohol(name: str) -> None:
    assert "alcohol" in {interaction.target for interaction in find(name).interactions}


@pytest.mark.parametrize(
    ("name", "age"),
    [
        ("aspirin", 16),
        ("codeine", 18),
        ("tetracycline", 8),
        ("levofloxacin", 18),
        ("nimesulide", 12),
        ("loperamide", 6),
    ],
)
def test_least_ages(name: str, age: float) -> None:
    children = find(name).children
    assert children is not None
    assert children.min_age_years == age


@pytest.mark.parametrize(
    "name", ["potassium chloride", "vincristine", "adrenaline", "insulin glargine", "promethazine"]
)
def test_dangerous_routes_are_named(name: str) -> None:
    assert find(name).route_warning


VOCABULARY = Vocabulary({"nsaid": Names(("非甾体抗炎药",), ("nsaids",))}, {}, frozenset())
ROW: dict[str, Any] = {
    "inn": "one",
    "zh": "一号",
    "aliases": [],
    "brands": [],
    "atc": "M01AE01",
    "classes": ["nsaid"],
    "max_daily_mg": {"value": 2, "unit": "g", "route": "oral", "per": "day"},
    "max_single": {"value": 500, "unit": "mg", "route": "oral", "per": "day"},
    "dose_note": None,
    "taper": False,
    "pregnancy": {"status": "avoid", "note": "n"},
    "cross_allergy": ["nsaid"],
    "interactions": [{"with": "nsaid", "level": "avoid", "note": "n"}],
    "children": {"note": "n", "min_age_years": 2},
    "route_warning": None,
    "source": "label",
    "source_url": "https://example.org",
}


def test_a_good_row_is_read() -> None:
    drug = DrugTable.from_lines([json.dumps(ROW), ""], VOCABULARY).by_inn["one"]
    assert drug.max_daily is not None
    assert drug.max_daily.mg == 2000


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"inn": ""}, "inn"),
        ({"inn": "One"}, "lower case"),
        ({"zh": None}, "zh"),
        ({"aliases": "x"}, "aliases"),
        ({"aliases": ["x", "x"]}, "twice"),
        ({"brands": ["一号"]}, "taken"),
        ({"atc": "M01"}, "atc"),
        ({"atc": None}, "herbs"),
        ({"classes": []}, "classes"),
        ({"classes": ["opioid"]}, "opioid"),
        ({"cross_allergy": ["opioid"]}, "opioid"),
        ({"max_daily_mg": None}, "dose_note"),
        ({"max_daily_mg": {**ROW["max_daily_mg"], "value": 0}}, "above 0"),
        ({"max_daily_mg": {**ROW["max_daily_mg"], "value": True}}, "above 0"),
        ({"max_daily_mg": {**ROW["max_daily_mg"], "unit": "oz"}}, "unit"),
        ({"max_daily_mg": {**ROW["max_daily_mg"], "unit": "IU"}}, "comparable"),
        ({"max_daily_mg": {**ROW["max_daily_mg"], "route": "iv"}}, "route"),
        ({"max_daily_mg": {**ROW["max_daily_mg"], "per": "month"}}, "per"),
        ({"max_single": {**ROW["max_single"], "value": 5000}}, "more than"),
        ({"max_single": 5}, "max_single"),
        ({"taper": "no"}, "taper"),
        ({"pregnancy": {"status": "fine", "note": "n"}}, "status"),
        ({"pregnancy": None}, "pregnancy"),
        ({"interactions": {}}, "interactions"),
        ({"interactions": [{"with": "two", "level": "avoid", "note": "n"}]}, "two"),
        ({"interactions": [{"with": "nsaid", "level": "bad", "note": "n"}]}, "level"),
        ({"children": {"note": "n", "min_age_years": 40}}, "min_age_years"),
        ({"source": " "}, "source"),
        ({"source_url": "http://example.org"}, "https"),
        ({"more": 1}, "more"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(change: dict[str, Any], word: str) -> None:
    with pytest.raises(DrugTableError, match=r"^line 2: ") as caught:
        DrugTable.from_lines(["", json.dumps({**ROW, **change})], VOCABULARY)
    assert word in str(caught.value)


@pytest.mark.parametrize("line", ["{", "[]", "null", "1", "{}"])
def test_a_line_that_is_no_row_is_refused(line: str) -> None:
    with pytest.raises(DrugTableError, match=r"^line 1: "):
        DrugTable.from_lines([line], VOCABULARY)


def test_a_name_may_not_lead_to_two_drugs() -> None:
    second = {**ROW, "inn": "two", "zh": "二号", "aliases": ["ONE"]}
    with pytest.raises(DrugTableError, match=r"^line 2: .*taken by one"):
        DrugTable.from_lines([json.dumps(ROW), json.dumps(second)], VOCABULARY)


@pytest.mark.parametrize("text", ["[", "classes: {}", "classes: []\nsubstances: {}\nordinary_words: []"])
def test_bad_class_names_are_refused(text: str, tmp_path: Any) -> None:
    path = tmp_path / "drug_classes.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DrugTableError, match=r"drug_classes\.yaml"):
        DrugTable.load(classes=path)


def test_absent_files_are_refused(tmp_path: Any) -> None:
    with pytest.raises(DrugTableError, match="none"):
        DrugTable.load(drugs=tmp_path / "none")
    with pytest.raises(DrugTableError, match="none"):
        DrugTable.load(classes=tmp_path / "none")
    with pytest.raises(DrugTableError, match="none"):
        DrugTable.source_digest(drugs=tmp_path / "none")


def test_the_digest_follows_both_files(tmp_path: Any) -> None:
    copies = tmp_path / DRUGS.name, tmp_path / CLASSES.name
    for path, original in zip(copies, (DRUGS, CLASSES), strict=True):
        path.write_bytes(original.read_bytes())
    digests = {DrugTable.source_digest(), DrugTable.source_digest(*copies)}
    assert len(digests) == 1
    for path in copies:
        path.write_bytes(path.read_bytes() + b"\n")
        digests.add(DrugTable.source_digest(*copies))
    assert len(digests) == 3


def test_rows_carry_every_key_even_when_it_is_null() -> None:
    assert all(row.keys() == ROW.keys() for row in ROWS)
