"""Checks of draft orders and of the patient's state by tables alone: allergy, pregnancy, dose, duplicates, interactions, age,
red flags.

The tables are the guard's own (`safety/drugs.jsonl`, `safety/policy/`): answers and orders are held to one rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from services.api.ehr.findings import Finding, say, worst_first
from services.api.ehr.order_doses import fits_route, ordered
from services.api.ehr.patient_text import clean
from services.api.ehr.record import Allergy, Coded, Medication, Record
from services.api.ehr.values import critical_values
from services.api.messages import Language
from services.api.safety.drugs import Drug
from services.api.safety.judge import Judge
from services.api.safety.mentions import Mention, mentions_of
from services.api.safety.normalise import normalise
from services.api.safety.policy import Policy
from services.api.safety.rules import default_rules
from services.api.safety.rules.allergy import Allergen, conflicts

ATC: Final = "http://www.whocc.no/atc"
_PREGNANT_CODES: Final = re.compile(r"Z33(?:\.1)?|Z34.*|O(?:0[9]|1\d|2\d|3\d|4[0-8]).*|77386006|72892002|82118009")
_PREGNANT: Final = re.compile(r"妊娠|怀孕|孕\s?\d+\s?周|孕妇|\bpregnan(?:t|cy)\b|\bgravid", re.IGNORECASE)
_NOT_PREGNANT: Final = re.compile(
    r"未孕|非妊娠|未怀孕|未妊娠|妊娠史|妊娠试验|not pregnant|history of|prevention|test|negative|阴性|终止|流产|产后|post",
    re.I,
)
# One more drug of these classes adds danger and hardly effect. Two of any other class are not told: many are given together.
_DANGEROUS_TWICE: Final = frozenset(
    {"anticoagulant", "heparin", "opioid", "benzodiazepine", "nsaid", "maoi", "cardiac_glycoside", "sulfonylurea"}
)
_NEEDLESS_TWICE: Final = frozenset(
    {"acei", "arb", "beta_blocker", "statin", "ppi", "h2_blocker", "ssri", "snri", "tricyclic", "dpp4_inhibitor",
     "sglt2_inhibitor", "glp1_agonist", "dihydropyridine", "thiazide", "loop_diuretic", "z_drug", "macrolide",
     "fluoroquinolone", "biguanide", "glinide", "bisphosphonate", "triptan"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Named:
    """A medicine and the drugs of the table that it holds."""

    medication: Medication
    mentions: tuple[Mention, ...]

    @property
    def drugs(self) -> list[Drug]:
        return [mention.drug for mention in self.mentions if mention.drug is not None]


def find_problems(record: Record, policy: Policy, language: Language, today: date) -> list[Finding]:
    """Everything that the tables say about this record and its draft orders, worst first."""
    medicines = [_named(m, policy) for m in record.medications if m.active]
    drafts = [m for m in medicines if m.medication.draft]
    # One of each drug is enough, so that a long list costs no time that a doctor waits.
    current = list({tuple(d.inn for d in m.drugs): m for m in medicines if not m.medication.draft}.values())
    allergens = _allergens(record, policy)
    found: list[Finding] = []
    if record.foreign_orders:
        found.append(_of_another(record, language))
    for n, order in enumerate(drafts):
        others = [*current, *drafts[:n]]
        found += _allergies(order, allergens, record, policy, language)
        found += _pregnancy(order, record, language)
        found += _dose(order, language)
        found += _interactions(order, others, policy, language)
        found += _duplicates(order, others, language)
        found += _age(order, record, language)
    found += critical_values(record, policy, language, today)
    found += _red_flags(record, policy, language)
    return worst_first(found)


def unknown_orders(record: Record, policy: Policy) -> int:
    """Draft medicines whose drug the table does not know: nothing was checked of them, and the card must say so."""
    return sum(m.draft and not _named(m, policy).drugs for m in record.medications)


def is_pregnant(record: Record) -> bool:
    """By an active condition's code or name, or by an observation of pregnancy status."""
    if record.sex == "male":
        return False
    for condition in record.conditions:
        if condition.active and not _NOT_PREGNANT.search(condition.what.text):
            if any(_PREGNANT_CODES.fullmatch(code) for _, code in condition.what.codes):
                return True
            if _PREGNANT.search(condition.what.text):
                return True
    status = [o for o in record.observations if any(code == "82810-3" for _, code in o.what.codes)]
    latest = max(status, key=lambda o: o.taken or date.min, default=None)
    return latest is not None and bool(_PREGNANT.search(latest.text)) and not _NOT_PREGNANT.search(latest.text)


def _named(medication: Medication, policy: Policy) -> Named:
    return Named(medication, _mentions(medication.what, policy))


def _mentions(what: Coded, policy: Policy) -> tuple[Mention, ...]:
    """The drugs and classes that a concept's text names; where it names none, the drug of its ATC code."""
    found = mentions_of(policy).find(normalise(what.text).text)
    if not found and (atc := what.code_of(ATC)):
        found = [Mention(0, 0, atc, drug=drug) for drug in policy.drugs.drugs if drug.atc == atc]
    return tuple(found)


def _shown(drug: Drug, language: Language) -> str:
    return drug.zh if language == "zh" else drug.inn


def _of_another(record: Record, language: Language) -> Finding:
    number = record.foreign_orders
    return Finding(
        "other_patient",
        "warning",
        say(
            language,
            f"{number} 条医嘱属于另一位患者，未作审查",
            f"{number} order(s) belong to another patient and were not reviewed",
        ),
        say(
            language,
            "医嘱的 subject 与当前患者不符，请核对患者身份。",
            "The order's subject is not the patient in context: check the patient's identity.",
        ),
    )


def _allergens(record: Record, policy: Policy) -> list[tuple[Allergy, Allergen]]:
    """What the table knows of the recorded allergies, each drug or class once, as severe as it was ever recorded."""
    found: dict[tuple[str, bool], tuple[Allergy, Allergen]] = {}
    for allergy in record.allergies:
        for mention in _mentions(allergy.what, policy):
            found.setdefault((mention.key, allergy.severe), (allergy, Allergen(mention, allergy.severe)))
    return list(found.values())


def _allergies(
    order: Named, allergens: Sequence[tuple[Allergy, Allergen]], record: Record, policy: Policy, language: Language
) -> Iterator[Finding]:
    for allergy, allergen in allergens:
        for mention in order.mentions:
            if mention.drug is None or not conflicts(allergen, mention, policy.drugs):
                continue
            name = _shown(mention.drug, language)
            known = clean(allergy.what.text, record.private)
            shown = f" ({', '.join(clean(r, record.private) for r in allergy.reactions)})" if allergy.reactions else ""
            yield Finding(
                "allergy",
                "critical",
                say(
                    language,
                    f"过敏冲突：患者对{known}过敏，医嘱含{name}",
                    f"Allergy: {name} ordered, {known} on the list",
                ),
                say(
                    language,
                    f"过敏记录：{known}{shown}。医嘱中的{name}与其相同、同类或有交叉过敏。",
                    f"Recorded allergy: {known}{shown}. {name} is the same drug, of its class, or cross-reacts.",
                ),
                mention.drug.source,
                mention.drug.source_url,
            )


def _pregnancy(order: Named, record: Record, language: Language) -> Iterator[Finding]:
    if not is_pregnant(record):
        return
    for drug in order.drugs:
        status = drug.pregnancy.status
        if status in ("contraindicated", "avoid", "trimester"):
            name = _shown(drug, language)
            word = say(language, "禁用" if status == "contraindicated" else "应避免或慎用", status)
            yield Finding(
                "pregnancy",
                "critical" if status == "contraindicated" else "warning",
                say(language, f"妊娠：{name}在妊娠期{word}", f"Pregnancy: {name} is marked '{word}'"),
                f"{name}: {drug.pregnancy.note}.",
                drug.source,
                drug.source_url,
            )


def _dose(order: Named, language: Language) -> Iterator[Finding]:
    if len(order.drugs) != 1:
        return  # of a combination it is not certain whose amount it is
    drug = order.drugs[0]
    for dosage in order.medication.dosages:
        amount = ordered(order.medication, dosage)
        single = drug.max_single if fits_route(dosage, drug.max_single) else None
        daily = drug.max_daily if fits_route(dosage, drug.max_daily) else None
        broken = amount.beyond(single, daily) if amount else None
        if broken is None:
            continue
        milligrams, ceiling = broken
        name = _shown(drug, language)
        per = {"day": ("每日", "a day"), "week": ("每周", "a week")}[ceiling.per]
        if ceiling is single and ceiling is not daily:
            per = ("单次", "at once")
        limit = f"{ceiling.value:g} {ceiling.unit}"
        yield Finding(
            "dose",
            "critical",
            say(
                language,
                f"剂量：{name}{per[0]} {milligrams:g} mg，超过上限 {limit}",
                f"Dose: {name} {milligrams:g} mg {per[1]}, above the ceiling of {limit}",
            ),
            say(
                language,
                f"医嘱合计{per[0]} {milligrams:g} mg；说明书成人最大{per[0]} {limit}（{ceiling.route}）。",
                f"The order comes to {milligrams:g} mg {per[1]}; the highest labelled adult dose is {limit} ({ceiling.route}).",
            ),
            drug.source,
            drug.source_url,
        )


def _interactions(order: Named, others: Sequence[Named], policy: Policy, language: Language) -> Iterator[Finding]:
    for drug in order.drugs:
        for other in (d for o in others for d in o.drugs if d.inn != drug.inn):
            if not (found := policy.drugs.conflicts(drug, other)):
                continue
            first, second = _shown(drug, language), _shown(other, language)
            forbidden = found[0].level == "contraindicated"
            word = say(language, "禁止合用" if forbidden else "应避免合用", "contraindicated" if forbidden else "avoid")
            yield Finding(
                "interaction",
                "critical" if forbidden else "warning",
                say(language, f"相互作用：{first}与{second}{word}", f"Interaction: {first} with {second} ({word})"),
                f"{first} + {second}: {found[0].note}.",
                drug.source,
                drug.source_url,
            )


def _duplicates(order: Named, others: Sequence[Named], language: Language) -> Iterator[Finding]:
    for drug in order.drugs:
        for other in (d for o in others for d in o.drugs):
            dangerous = set(drug.classes) & set(other.classes) & _DANGEROUS_TWICE
            needless = set(drug.classes) & set(other.classes) & _NEEDLESS_TWICE
            same = drug.inn == other.inn
            if not (dangerous or needless or same):
                continue
            first, second = _shown(drug, language), _shown(other, language)
            summary = say(language, f"重复用药：{first}与{second}同类", f"Duplicate class: {first} and {second}")
            if same:
                summary = say(language, f"重复用药：已有{second}医嘱", f"Duplicate: {second} is already ordered")
            yield Finding(
                "duplicate",
                "critical" if dangerous and not same else "warning",
                summary,
                say(
                    language,
                    f"{first}、{second}：{'、'.join(sorted(dangerous or needless)) or '同一药物'}。换药或续方请停用原医嘱。",
                    f"{first}, {second}: {', '.join(sorted(dangerous or needless)) or 'the same drug'}. "
                    "If this replaces or renews the earlier order, end that one.",
                ),
                drug.source,
                drug.source_url,
            )


def _age(order: Named, record: Record, language: Language) -> Iterator[Finding]:
    for drug in order.drugs:
        least = drug.children.min_age_years if drug.children else None
        if drug.children is None or least is None or record.age_years is None or record.age_years >= least:
            continue
        name = _shown(drug, language)
        yield Finding(
            "age",
            "warning",
            say(
                language,
                f"年龄：{name}不用于 {least:g} 岁以下",
                f"Age: {name} is not for children under {least:g} years",
            ),
            f"{name}: {drug.children.note}.",
            drug.source,
            drug.source_url,
        )


def _red_flags(record: Record, policy: Policy, language: Language) -> Iterator[Finding]:
    """Why the patient came, read as the guard reads a question: an emergency that is told there is told on a card."""
    told = [reason for e in record.encounters if e.ongoing for reason in e.reasons]
    reasons = [clean(reason, record.private) for reason in dict.fromkeys(told)]
    judge = Judge(policy, default_rules())
    for reason in reasons[:8]:
        case = judge.open([("user", reason)])
        if "red_flag_input" not in case.facts:
            continue
        yield Finding(
            "red_flag",
            "critical",
            say(language, f"警示症状：{reason}", f"Red flag: {reason}"),
            say(
                language,
                f"本次就诊原因“{reason}”提示可能的急症，请优先评估。",
                f"The reason for this visit, '{reason}', may be an emergency: assess it first.",
            ),
            f"MedThink policy {policy.label}",
        )
