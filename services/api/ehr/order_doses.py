"""How much of a drug an order comes to: from its structured dosage, or from its text, in milligrams."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from services.api.ehr.record import Dosage, Medication
from services.api.safety import doses
from services.api.safety.drugs import Dose
from services.api.safety.normalise import normalise

_MG: Final = {"mg": 1.0, "毫克": 1.0, "g": 1000.0, "克": 1000.0, "ug": 0.001, "μg": 0.001, "mcg": 0.001, "微克": 0.001}
_PIECES: Final = re.compile(r"^\{?(?:tab|cap|pill|片|粒|颗|each|ea\b|1$)", re.IGNORECASE)
_STRENGTH: Final = re.compile(r"(\d+(?:\.\d+)?)\s?(mg|mcg|ug|μg|g|毫克|克|微克)(?![a-z])", re.IGNORECASE)
_PER_VOLUME: Final = re.compile(r"(?:mg|mcg|ug|g|毫克|克)\s?/\s?(?:\d*\s?ml|毫升|h|hr|hour|\d)", re.IGNORECASE)
_ROUTES: Final = {
    "oral": re.compile(r"oral|by mouth|口服|\bpo\b|^po$", re.IGNORECASE),
    "iv": re.compile(r"intravenous|静脉|静滴|\biv\b", re.IGNORECASE),
    "intramuscular": re.compile(r"intramuscular|肌|\bim\b", re.IGNORECASE),
    "subcutaneous": re.compile(r"subcutaneous|皮下|\bsc\b|\bsubq\b", re.IGNORECASE),
    "sublingual": re.compile(r"sublingual|舌下|\bsl\b", re.IGNORECASE),
    "inhalation": re.compile(r"inhal|吸入|雾化", re.IGNORECASE),
    "vaginal": re.compile(r"vagin|阴道", re.IGNORECASE),
    "topical": re.compile(r"topical|外用|cutaneous use", re.IGNORECASE),
}


@dataclass(frozen=True, slots=True)
class Ordered:
    """Milligrams at once, and times a day where the order says so."""

    each_mg: float
    a_day: float | None

    def beyond(self, single: Dose | None, daily: Dose | None) -> tuple[float, Dose] | None:
        """The amount in mg and the ceiling that it breaks; `None` where it breaks none that the table has in mg."""
        if daily is not None and daily.mg is not None and self.a_day is not None:
            amount = self.each_mg * self.a_day * (7 if daily.per == "week" else 1)
            if amount > daily.mg * 1.001:
                return amount, daily
        if single is not None and single.mg is not None and self.each_mg > single.mg * 1.001:
            return self.each_mg, single
        return None


def ordered(order: Medication, dosage: Dosage) -> Ordered | None:
    """What one dosage of an order comes to; `None` where the amount cannot be told for certain."""
    each = _each(order, dosage)
    if each is not None:
        return Ordered(each, dosage.a_day if dosage.a_day else doses.times_a_day(normalise(dosage.text).text))
    if dosage.each is not None or not dosage.text:
        return None
    text = normalise(dosage.text).text
    told = [amount for amount in doses.amounts(text) if amount.kind in ("mg", "pieces")]
    if len(told) != 1 or doses.is_divided(text):
        return None
    milligrams: float | None = told[0].value
    if told[0].kind == "pieces":
        strength = _strength(order.what.text)
        milligrams = None if strength is None else told[0].value * strength
    if milligrams is None:
        return None
    return Ordered(milligrams, 1.0 if told[0].a_day else doses.times_a_day(text))


def fits_route(dosage: Dosage, ceiling: Dose | None) -> bool:
    """Whether a ceiling is of the order's route; an order that names none is taken for the table's."""
    if ceiling is None:
        return False
    named = [route for route, pattern in _ROUTES.items() if pattern.search(dosage.route)]
    if not dosage.route:
        return True
    return ceiling.route in named or (ceiling.route == "parenteral" and bool({"iv", "intramuscular"} & set(named)))


def _each(order: Medication, dosage: Dosage) -> float | None:
    if dosage.each is None:
        return None
    unit = dosage.unit.strip()
    if unit.lower() in _MG:
        return dosage.each * _MG[unit.lower()]
    strength = _strength(order.what.text) if _PIECES.search(unit) else None
    return None if strength is None else dosage.each * strength


def _strength(name: str) -> float | None:
    """Milligrams in one piece; `None` for two strengths (a combination) and for amounts per volume."""
    found = {float(value) * _MG[unit.lower()] for value, unit in _STRENGTH.findall(name)}
    return found.pop() if len(found) == 1 and not _PER_VOLUME.search(name) else None
