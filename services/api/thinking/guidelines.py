"""Guidelines that a thought may cite: which real document a mention means, or that none is known.

`guidelines.jsonl` holds one document a line. Its addresses are DOIs, NICE's and WHO's numbers, and the landing pages of bodies
that publish one report a year; none is made up from a mention. A mention that names a year, a body or a topic that no
document has is not resolved: a wrong link is worse than none.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

TABLE: Final = Path(__file__).parent / "guidelines.jsonl"
HOSTS: Final = (
    "https://doi.org/10.",
    "https://www.nice.org.uk/guidance/",
    "https://www.who.int/publications/i/item/",
    "https://diabetesjournals.org/care/issue/",
    "https://goldcopd.org/",
    "https://ginasthma.org/",
)
_KEYS = {"organisations", "year", "title", "names", "topics", "general", "address"}
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)")
_NICE_NUMBER = re.compile(r"\b(ng|cg)\s?(\d{1,3})(?!\d)")
_ACRONYM = re.compile(r"(?<![a-z])[a-z]{2,6}(?![a-z])")
# A mention that names a body and no topic.
_UNSPECIFIC = re.compile(
    r"[a-z]+(?:/[a-z]+)*\s?年?\s?(?:(?:诊疗|诊治)?标准|指南|报告|guidelines?|standards?(?: of (?:medical )?care)?|reports?)?"
)
# What editions are called, in brackets or not: the year among it is read before.
_EDITION = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)\s*年?|修订版|年版|版|第[一二三四五六七八九十]+|[()《》“”\"\[\]]")


class GuidelineTableError(ValueError):
    """The table is malformed. The message names the line and what to mend there."""


@dataclass(frozen=True, slots=True)
class Guideline:
    """One document. `names` and `topics` as people write them, normalised; `general`: the body's only one on its field.

    `year` is None for a report that comes anew each year at the same address.
    """

    organisations: frozenset[str]
    year: int | None
    title: str
    names: frozenset[str]
    topics: tuple[str, ...]
    general: bool
    address: str


def normalise(text: str) -> str:
    """For comparing: NFKC, lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def _bare(text: str) -> str:
    """A name without its edition and without spaces beside Chinese."""
    return re.sub(r"\s+", " ", _EDITION.sub(" ", normalise(text))).strip()


class Guidelines:
    """The table. Never changes."""

    def __init__(self, documents: Iterable[Guideline]) -> None:
        self.documents = tuple(documents)
        self.organisations = frozenset(name for d in self.documents for name in d.organisations)

    @classmethod
    def load(cls, path: Path = TABLE) -> Guidelines:
        """The table from its file. Raises `GuidelineTableError`."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise GuidelineTableError(
                f"{path.name} cannot be read: {error}. Restore it from the repository."
            ) from error
        return cls.from_lines(lines)

    @classmethod
    def from_lines(cls, lines: Iterable[str]) -> Guidelines:
        """The table from JSON, one document a line. Raises `GuidelineTableError` naming the line."""
        documents: list[Guideline] = []
        seen: dict[tuple[str, int | None], int] = {}
        for number, line in enumerate(lines, start=1):
            try:
                document = _read(json.loads(line))
                for key in (document.address, *document.names):
                    first = seen.setdefault((key, document.year), number)
                    if first != number:
                        raise ValueError(f"{key!r} is in line {first} already; one document a line")
            except (KeyError, TypeError, ValueError) as error:
                raise GuidelineTableError(f"line {number}: {error}") from error
            documents.append(document)
        return cls(documents)

    def resolve(self, mention: str) -> Guideline | None:
        """The document that a mention means, the newest where it leaves the year open; None when none surely is meant."""
        text, bare = normalise(mention), _bare(mention)
        if number := _NICE_NUMBER.search(text):
            return next((d for d in self.documents if number[1] + number[2] in d.names), None)
        years = {int(year) for year in _YEAR.findall(text)}
        # A report that comes anew each year has every year, at the one address.
        dated = [d for d in self.documents if not years or d.year is None or years == {d.year}]
        named = [d for d in dated if bare in d.names]
        if not named:
            bodies = set(_ACRONYM.findall(text)) & self.organisations
            named = self._by_topic([d for d in dated if bodies and bodies <= d.organisations], text)
        return max(named, key=lambda d: d.year or 0, default=None)

    @staticmethod
    def _by_topic(candidates: list[Guideline], text: str) -> list[Guideline]:
        """Those whose topic is the longest that the text names; with no topic at all, those that are general."""
        lengths = {d: max((len(t) for t in d.topics if t in text), default=0) for d in candidates}
        longest = max(lengths.values(), default=0)
        if longest:
            return [d for d in candidates if lengths[d] == longest]
        return [d for d in candidates if d.general] if _UNSPECIFIC.fullmatch(_bare(text)) else []


def _read(row: Any) -> Guideline:
    if not isinstance(row, dict) or row.keys() != _KEYS:
        raise ValueError(f"must be an object with {', '.join(sorted(_KEYS))}")
    if not row["address"].startswith(HOSTS):
        raise ValueError(f"address must begin with one of {', '.join(HOSTS)}")
    if row["year"] is not None and not 1990 <= row["year"] <= 2100:
        raise ValueError("year must be null or a year")
    if not row["organisations"] or not (row["names"] or row["topics"]):
        raise ValueError("a document needs a body, and a name or a topic")
    return Guideline(
        organisations=frozenset(normalise(name) for name in row["organisations"]),
        year=row["year"],
        title=row["title"],
        names=frozenset(_bare(name) for name in (*row["names"], row["title"])),
        topics=tuple(normalise(topic) for topic in row["topics"]),
        general=bool(row["general"]),
        address=row["address"],
    )
