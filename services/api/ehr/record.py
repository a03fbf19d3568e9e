"""One patient as far as decision support needs them: facts without a name, an address or a number that says who it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date


@dataclass(frozen=True, slots=True)
class Coded:
    """A coded concept: `text` is what people read, `codes` are (system, code)."""

    text: str
    codes: tuple[tuple[str, str], ...] = ()

    def code_of(self, system: str) -> str | None:
        """The code in a system; `None` without one."""
        return next((code for known, code in self.codes if known == system), None)


@dataclass(frozen=True, slots=True)
class Condition:
    """A problem, diagnosis or complaint. `active` false: resolved, remitted or refuted."""

    what: Coded
    active: bool
    since: date | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """A measured value; a component of a panel is one by itself. `value` is a number in `unit`, or None beside a `text`."""

    what: Coded
    value: float | None
    unit: str
    text: str
    taken: date | None
    abnormal: str = ""  # interpretation code of the laboratory: H, L, HH, LL, A, ...


@dataclass(frozen=True, slots=True)
class Dosage:
    """`each` in `unit`, at most `a_day` times a day, by `route`; None: the order does not say."""

    text: str = ""
    each: float | None = None
    unit: str = ""
    a_day: float | None = None
    route: str = ""


@dataclass(frozen=True, slots=True)
class Medication:
    """A medicine that is taken (`draft` false) or about to be ordered."""

    what: Coded
    active: bool
    draft: bool
    dosages: tuple[Dosage, ...] = ()
    order_id: str = ""


@dataclass(frozen=True, slots=True)
class Allergy:
    """An allergy or intolerance. `refuted` ones never get here. `severe`: high criticality or a severe reaction."""

    what: Coded
    severe: bool
    reactions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Encounter:
    """A visit: `ongoing` now, and why the patient came."""

    kind: str
    ongoing: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """An order of another kind than a medicine: its name and what it is for."""

    what: Coded
    reasons: tuple[str, ...] = ()


@dataclass(slots=True)
class Record:
    """Everything that was read of one patient. `missing`, `partial`, `failed` name prefetch keys; `foreign` counts resources
    of other patients, which were left out."""

    patient_id: str
    has_patient: bool = False
    age_years: float | None = None
    sex: str = ""  # female, male, other, or nothing known
    deceased: bool = False
    conditions: list[Condition] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    medications: list[Medication] = field(default_factory=list)
    allergies: list[Allergy] = field(default_factory=list)
    no_known_allergies: bool = False
    encounters: list[Encounter] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    foreign: int = 0
    foreign_orders: int = 0
    unread: int = 0  # resources of kinds that are not read, or too broken to read
    private: set[str] = field(default_factory=set)  # exact words that say who it is: taken out of every text
