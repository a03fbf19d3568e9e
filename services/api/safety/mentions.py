"""Which drugs, classes of drugs and substances a text names, and where: the longest name first, in one linear pass.

Names come from the drug table. A name of Latin letters is a whole word; a Chinese one stands anywhere. Everyday words that are
brand names too (安定) count only beside a word that makes them a drug (吃安定, 安定片). The policy may add names that the table
lacks: its terms with `data: {drug: ...}` (another name of a drug), `data: {class: ...}` or `data: {substance: ...}`.
"""

from __future__ import annotations

import functools
import re as stdlib_re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import re2

from services.api.safety.drugs import Drug, DrugTable, Names
from services.api.safety.normalise import normalise
from services.api.safety.policy import Policy

_MOST_MENTIONS = 60  # in one text: a text that is a list of drugs is not read for ever
_BEFORE_ORDINARY = ("吃", "喝", "服", "服用", "用", "停", "停掉", "停用", "加", "take ", "taking ", "use ")
_AFTER_ORDINARY = ("片", "胶囊", "针", "混悬液", "注射液", " tablets", " pills", "吃", "一次")
# Too broad to stand for their class in a patient's mouth, or no drug at all.
_LOOSE = frozenset({"drinking", "止血药", "壮阳药", "muscle relaxants"})


@dataclass(frozen=True, slots=True)
class Mention:
    """One name in a text. Exactly one of `drug`, `class_id` and `substance` is there."""

    start: int
    end: int
    name: str
    drug: Drug | None = None
    class_id: str | None = None
    substance: str | None = None

    @property
    def key(self) -> str:
        """What it names, for comparison: two brands of one drug have the same."""
        if self.drug is not None:
            return self.drug.inn
        return self.class_id or self.substance or ""

    @property
    def classes(self) -> frozenset[str]:
        """The classes it belongs to; its own one when it is a class."""
        if self.drug is not None:
            return frozenset(self.drug.classes)
        return frozenset({self.class_id} if self.class_id else ())


@dataclass(frozen=True, slots=True)
class _Named:
    drug: Drug | None = None
    class_id: str | None = None
    substance: str | None = None


class Mentions:
    """Finds the table's names in normalised texts. Immutable; one per table."""

    def __init__(self, table: DrugTable, added: Iterable[tuple[str, _Named]] = ()) -> None:
        self._names = dict(_all_names(table)) | dict(added)
        options = re2.Options()
        options.longest_match = True
        options.log_errors = False
        options.max_mem = 256 << 20
        latin = [stdlib_re.escape(n) for n in self._names if _is_word(n)]
        other = [stdlib_re.escape(n) for n in self._names if not _is_word(n)]
        self._pattern: Any = re2.compile(rf"\b(?:{'|'.join(latin)})\b|{'|'.join(other)}", options)

    def find(self, text: str) -> list[Mention]:
        """The names in `text`, which `normalise` has made, in the order of their places; they never overlap."""
        found: list[Mention] = []
        for match in self._pattern.finditer(text):
            named = self._names.get(match[0])
            if named is not None:
                found.append(Mention(match.start(), match.end(), match[0], named.drug, named.class_id, named.substance))
            if len(found) == _MOST_MENTIONS:
                break
        return found


@functools.lru_cache(maxsize=4)
@dataclass(frozen=True)
class OfPolicy:
    """A policy as a key: two with one digest say the same."""

    digest: str
    policy: Policy = field(compare=False)


def mentions_of(policy: Policy) -> Mentions:
    """The names of a policy's table and terms, compiled once."""
    return _compiled(OfPolicy(policy.digest, policy))


@functools.lru_cache(maxsize=4)
def _compiled(key: OfPolicy) -> Mentions:
    table = key.policy.drugs
    added = [
        (name, _named(table, kind, str(value)))
        for term in key.policy.terms.values()
        for kind, value in (term.data or {}).items()
        if kind in ("drug", "class", "substance")
        for combination in term.any_of
        for name in combination
    ]
    return Mentions(table, added)


def _named(table: DrugTable, key: str, value: str) -> _Named:
    if key == "drug":
        return _Named(drug=table.by_inn[value])
    return _Named(class_id=value) if key == "class" else _Named(substance=value)


def _is_word(name: str) -> bool:
    return name.isascii() and name[0].isalnum() and name[-1].isalnum()


def _all_names(table: DrugTable) -> Iterable[tuple[str, _Named]]:
    """Later ones win, so drugs come last: 胰岛素 is a class and the name of a drug."""
    for class_id, names in table.class_names.items():
        yield from ((plain, _Named(class_id=class_id)) for plain in _spoken_names(names))
    for substance, names in table.substances.items():
        yield from ((plain, _Named(substance=substance)) for plain in _spoken_names(names))
    for name, drug in table.names().items():
        plain = normalise(name).text
        if name in table.ordinary_words:
            yield from ((written, _Named(drug=drug)) for written in _unmistakable(plain))
        elif len(plain) > 1:
            yield plain, _Named(drug=drug)


def _spoken_names(names: Names) -> Iterable[str]:
    return (normalise(name).text for name in (*names.zh, *names.en) if name not in _LOOSE and len(name) > 1)


def _unmistakable(name: str) -> Iterable[str]:
    yield from (before + name for before in _BEFORE_ORDINARY)
    yield from (name + after for after in _AFTER_ORDINARY)
