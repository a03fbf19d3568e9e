"""The drugs that answers speak of: names, classes, ceilings of dose, and what must not be recommended to whom.

`drugs.jsonl` holds one drug a line with its source; `drug_classes.yaml` names the classes as patients do. The table is for
checking answers, not for prescribing: a ceiling is the highest labelled adult dose, and most people need less.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import yaml

DRUGS: Final = Path(__file__).parent / "drugs.jsonl"
CLASSES: Final = Path(__file__).parent / "drug_classes.yaml"
ATC_ADDRESS: Final = "https://atcddd.fhi.no/atc_ddd_index/?code={}"

UNITS: Final = {"mg": 1.0, "g": 1000.0, "ug": 0.001, "IU": None, "mL": None}
ROUTES: Final = frozenset(
    [
        "oral",
        "sublingual",
        "iv",
        "intramuscular",
        "subcutaneous",
        "parenteral",
        "infiltration",
        "inhalation",
        "vaginal",
        "topical",
    ]
)
PERIODS: Final = frozenset({"day", "week"})
STATUSES: Final = frozenset({"contraindicated", "avoid", "caution", "compatible", "trimester"})
LEVELS: Final = ("contraindicated", "avoid")
_ATC = re.compile(r"[A-Z]\d\d[A-Z][A-Z]\d\d")
_KEYS = frozenset(
    [
        "inn",
        "zh",
        "aliases",
        "brands",
        "atc",
        "classes",
        "max_daily_mg",
        "max_single",
        "dose_note",
        "taper",
        "pregnancy",
        "cross_allergy",
        "interactions",
        "children",
        "route_warning",
        "source",
        "source_url",
    ]
)


class DrugTableError(ValueError):
    """The table is malformed. The message names the line and what to mend there."""


@dataclass(frozen=True, slots=True)
class Dose:
    """An amount that must not be exceeded: at once, in a day, or in a week (`per`), by one route."""

    value: float
    unit: str
    route: str
    per: str

    @property
    def mg(self) -> float | None:
        """The amount in milligrams; None for units of activity or volume."""
        factor = UNITS[self.unit]
        return None if factor is None else self.value * factor


@dataclass(frozen=True, slots=True)
class Pregnancy:
    status: str
    note: str


@dataclass(frozen=True, slots=True)
class Interaction:
    """A dangerous combination. `target` is a class id, an INN, or a substance such as alcohol."""

    target: str
    level: str
    note: str


@dataclass(frozen=True, slots=True)
class Children:
    """`min_age_years` is None where the note alone says what holds."""

    note: str
    min_age_years: float | None


@dataclass(frozen=True, slots=True)
class Drug:
    """One drug. `max_daily` is per day or, where `per` says so, per week; None where it is individual (`dose_note`)."""

    inn: str
    zh: str
    aliases: tuple[str, ...]
    brands: tuple[str, ...]
    atc: str | None
    classes: tuple[str, ...]
    max_daily: Dose | None
    max_single: Dose | None
    dose_note: str | None
    taper: bool
    pregnancy: Pregnancy
    cross_allergy: tuple[str, ...]
    interactions: tuple[Interaction, ...]
    children: Children | None
    route_warning: str | None
    source: str
    source_url: str

    @property
    def all_names(self) -> tuple[str, ...]:
        return (self.inn, self.zh, *self.aliases, *self.brands)


@dataclass(frozen=True, slots=True)
class Names:
    """What people call a class or a substance."""

    zh: tuple[str, ...]
    en: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`ordinary_words` are names of drugs that are everyday words too: alone, they are no sign of the drug."""

    classes: Mapping[str, Names]
    substances: Mapping[str, Names]
    ordinary_words: frozenset[str]


def normalise(name: str) -> str:
    """A name as the table's keys are written: lower case, single spaces."""
    return " ".join(name.split()).lower()


class DrugTable:
    """The table with its indexes. Built by `load` or `from_lines`; never changes."""

    def __init__(self, drugs: Iterable[Drug], vocabulary: Vocabulary) -> None:
        self.drugs = tuple(drugs)
        self.class_names = vocabulary.classes
        self.substances = vocabulary.substances
        self.ordinary_words = vocabulary.ordinary_words
        self.by_inn: Mapping[str, Drug] = MappingProxyType({drug.inn: drug for drug in self.drugs})
        names = {normalise(name): drug for drug in self.drugs for name in drug.all_names}
        self._names: Mapping[str, Drug] = MappingProxyType(names)
        members: dict[str, list[Drug]] = {class_id: [] for class_id in self.class_names}
        for drug in self.drugs:
            for class_id in drug.classes:
                members[class_id].append(drug)
        self._members = {class_id: tuple(found) for class_id, found in members.items()}

    @classmethod
    def load(cls, drugs: Path = DRUGS, classes: Path = CLASSES) -> DrugTable:
        """The table from its two files. Raises `DrugTableError`."""
        vocabulary = _read_vocabulary(classes)
        try:
            lines = drugs.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DrugTableError(f"{drugs.name} cannot be read: {error}. Restore it from the repository.") from error
        return cls.from_lines(lines, vocabulary)

    @classmethod
    def from_lines(cls, lines: Iterable[str], vocabulary: Vocabulary) -> DrugTable:
        """The table from JSON, one drug a line; empty lines are skipped. Raises `DrugTableError` naming the line."""
        drugs: list[Drug] = []
        line_of: dict[str, int] = {}
        owner: dict[str, str] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                drug = _parse(json.loads(line))
                _claim_names(drug, owner)
            except (TypeError, ValueError) as error:
                raise DrugTableError(f"line {number}: {error}") from error
            line_of[drug.inn] = number
            drugs.append(drug)
        for drug in drugs:
            _check_references(drug, line_of, vocabulary)
        return cls(drugs, vocabulary)

    @staticmethod
    def source_digest(drugs: Path = DRUGS, classes: Path = CLASSES) -> str:
        """SHA-256 over the two files, for records. Raises `DrugTableError`."""
        digest = hashlib.sha256()
        for path in (drugs, classes):
            try:
                content = path.read_bytes()
            except OSError as error:
                raise DrugTableError(f"{path.name} cannot be read: {error}. Restore it from the repository.") from error
            digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()

    def names(self) -> Mapping[str, Drug]:
        """Every name of every drug, normalised, to the drug. Look up with `normalise`."""
        return self._names

    def members(self, class_id: str) -> tuple[Drug, ...]:
        """The drugs of a class. Raises `KeyError` for a class that is not declared."""
        return self._members[class_id]

    def conflicts(self, first: Drug, second: Drug) -> tuple[Interaction, ...]:
        """Why the two must not be taken together, the worst first; looked up both ways."""
        found = [
            interaction
            for drug, other in ((first, second), (second, first))
            for interaction in drug.interactions
            if interaction.target == other.inn or interaction.target in other.classes
        ]
        return tuple(sorted(dict.fromkeys(found), key=lambda interaction: LEVELS.index(interaction.level)))

    def address(self, drug: Drug) -> str:
        """Where a drug's name links to: the WHO ATC/DDD index by code, or the source of a herb, which has none."""
        return drug.source_url if drug.atc is None else ATC_ADDRESS.format(drug.atc)


def _parse(row: Any) -> Drug:
    if not isinstance(row, dict):
        raise TypeError("must be a JSON object")
    if row.keys() != _KEYS:
        missing, unknown = sorted(_KEYS - row.keys()), sorted(row.keys() - _KEYS)
        raise ValueError(f"keys differ from the table's: missing {missing}, unknown {unknown}")
    atc = _optional_text(row, "atc")
    if atc is not None and not _ATC.fullmatch(atc):
        raise ValueError(f"atc {atc!r} is no code of the fifth level, such as N02BE01")
    if not isinstance(row["taper"], bool):
        raise TypeError("taper must be true or false")
    pregnancy = _object(row["pregnancy"], "pregnancy", {"status", "note"})
    drug = Drug(
        inn=_text(row, "inn"),
        zh=_text(row, "zh"),
        aliases=_texts(row, "aliases"),
        brands=_texts(row, "brands"),
        atc=atc,
        classes=_texts(row, "classes"),
        max_daily=_dose(row["max_daily_mg"], "max_daily_mg"),
        max_single=_dose(row["max_single"], "max_single"),
        dose_note=_optional_text(row, "dose_note"),
        taper=row["taper"],
        pregnancy=Pregnancy(_one_of(pregnancy, "status", STATUSES), _text(pregnancy, "note")),
        cross_allergy=_texts(row, "cross_allergy"),
        interactions=_interactions(row["interactions"]),
        children=_children(row["children"]),
        route_warning=_optional_text(row, "route_warning"),
        source=_text(row, "source"),
        source_url=_text(row, "source_url"),
    )
    if drug.inn != normalise(drug.inn):
        raise ValueError(f"inn {drug.inn!r} must be lower case")
    if drug.atc is None and "herb" not in drug.classes:
        raise ValueError("atc may be null for herbs only")
    if not drug.classes:
        raise ValueError("classes must name at least one class")
    if drug.max_daily is None and drug.dose_note is None:
        raise ValueError("dose_note must say why there is no max_daily_mg")
    if not drug.source_url.startswith("https://"):
        raise ValueError("source_url must be an https address")
    _check_single(drug)
    return drug


def _check_single(drug: Drug) -> None:
    single, daily = drug.max_single, drug.max_daily
    if single is None or daily is None:
        return
    if single.route != daily.route:
        raise ValueError("max_single and max_daily_mg must be by the same route")
    same = single.unit == daily.unit
    amounts = (single.value, daily.value) if same else (single.mg, daily.mg)
    if amounts[0] is None or amounts[1] is None:
        raise ValueError("max_single and max_daily_mg must have comparable units")
    if amounts[0] > amounts[1]:
        raise ValueError("max_single is more than max_daily_mg")


def _claim_names(drug: Drug, owner: dict[str, str]) -> None:
    for name in map(normalise, drug.all_names):
        if name in owner:
            raise ValueError(f"the name {name!r} is taken by {owner[name]}; a name leads to one drug")
        owner[name] = drug.inn


def _check_references(drug: Drug, line_of: Mapping[str, int], vocabulary: Vocabulary) -> None:
    for class_id in (*drug.classes, *drug.cross_allergy):
        if class_id not in vocabulary.classes:
            raise DrugTableError(f"line {line_of[drug.inn]}: class {class_id!r} is not in drug_classes.yaml")
    for interaction in drug.interactions:
        target = interaction.target
        if target not in line_of and target not in vocabulary.classes and target not in vocabulary.substances:
            raise DrugTableError(
                f"line {line_of[drug.inn]}: interaction with {target!r}: no such drug, class, substance"
            )


def _dose(value: Any, key: str) -> Dose | None:
    if value is None:
        return None
    entry = _object(value, key, {"value", "unit", "route", "per"})
    amount = entry["value"]
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < float("inf"):
        raise ValueError(f"{key}.value must be a number above 0")
    unit, route = _one_of(entry, "unit", UNITS), _one_of(entry, "route", ROUTES)
    return Dose(float(amount), unit, route, _one_of(entry, "per", PERIODS))


def _interactions(value: Any) -> tuple[Interaction, ...]:
    if not isinstance(value, list):
        raise TypeError("interactions must be a list")
    entries = (_object(entry, "interactions", {"with", "level", "note"}) for entry in value)
    return tuple(Interaction(_text(e, "with"), _one_of(e, "level", LEVELS), _text(e, "note")) for e in entries)


def _children(value: Any) -> Children | None:
    if value is None:
        return None
    entry = _object(value, "children", {"note", "min_age_years"})
    age = entry["min_age_years"]
    if age is not None and (isinstance(age, bool) or not isinstance(age, int | float) or not 0 <= age <= 18):
        raise ValueError("children.min_age_years must be null or 0 to 18")
    return Children(_text(entry, "note"), None if age is None else float(age))


def _object(value: Any, key: str, keys: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != keys:
        raise ValueError(f"{key} must be an object with {', '.join(sorted(keys))}")
    return value


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value or value != value.strip():
        raise ValueError(f"{key} must be a text without blanks around it")
    return value


def _optional_text(row: Mapping[str, Any], key: str) -> str | None:
    return None if row[key] is None else _text(row, key)


def _texts(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = row[key]
    if not isinstance(value, list) or not all(isinstance(v, str) and v and v == v.strip() for v in value):
        raise ValueError(f"{key} must be a list of texts without blanks around them")
    if len(set(value)) != len(value):
        raise ValueError(f"{key} names something twice")
    return tuple(value)


def _one_of(row: Mapping[str, Any], key: str, allowed: Iterable[str]) -> str:
    value = row[key]
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{key} must be one of {', '.join(sorted(allowed))}, not {value!r}")
    return value


def _read_vocabulary(path: Path) -> Vocabulary:
    # libyaml reads the file ten times as fast; a build without it reads the same.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
        content = _object(content, path.name, {"classes", "substances", "ordinary_words"})
        classes, substances = _names(content["classes"], "classes"), _names(content["substances"], "substances")
        return Vocabulary(classes, substances, frozenset(map(normalise, _texts(content, "ordinary_words"))))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise DrugTableError(f"{path.name}: {error}") from error


def _names(value: Any, key: str) -> Mapping[str, Names]:
    if not isinstance(value, dict):
        raise TypeError(f"{key} must be a mapping")
    found: dict[str, Names] = {}
    for class_id, entry in value.items():
        if not isinstance(class_id, str):
            raise TypeError(f"{key}: {class_id!r} must be a text")
        names = _object(entry, class_id, {"zh", "en"})
        found[class_id] = Names(_texts(names, "zh"), _texts(names, "en"))
    return MappingProxyType(found)
