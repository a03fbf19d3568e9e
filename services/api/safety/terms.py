"""The policy's terms over one text: which occur, where, and in what scope.

A term is one pattern, or several that occur together (a red flag is a region, a quality and a tempo). One pass over the text says
which patterns are possible, and only those are looked for; scopes are told only of finds that they may take back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ahocorasick

from services.api.safety.patterns import EncodedText, Pattern, TermError, expand
from services.api.safety.scopes import CLAUSE_MARKS, QUOTED, SENTENCE_MARKS, CompiledCue, Cue, is_quoted

__all__ = ["CLAUSE_MARKS", "SENTENCE_MARKS", "Cue", "Find", "Term", "TermError", "TermMatcher", "expand"]

_Span = tuple[int, int]
_MOST_FOUND = 8192  # messages whose finds are kept: places and terms, some hundred bytes each


@dataclass(frozen=True, slots=True)
class Term:
    """One entry of the policy. `any_of` holds combinations, each of patterns that occur within `within` characters."""

    id: str
    group: str
    any_of: tuple[tuple[str, ...], ...]
    within: int = 60
    unless: tuple[str, ...] = ()
    passes: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Find:
    """A term found: characters `start` to `end` of the text. `scopes` are those that take it back, if any do."""

    term: Term
    start: int
    end: int
    scopes: frozenset[str]

    @property
    def is_active(self) -> bool:
        """No scope takes it back."""
        return not self.scopes


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A term with its patterns' numbers."""

    term: Term
    combinations: tuple[tuple[int, ...], ...]
    unless: tuple[int, ...]


class TermMatcher:
    """Terms and cues, compiled. Reads texts that `normalise` has made; keeps nothing of them."""

    def __init__(self, terms: Sequence[Term], cues: Sequence[Cue], words: Mapping[str, Sequence[str]]) -> None:
        """Raises `TermError` naming the term or cue whose pattern does not compile."""
        self._patterns: list[Pattern] = []
        self._numbers: dict[str, int] = {}
        self._cues = {cue.name: CompiledCue(cue, words, self._note) for cue in cues}
        self._terms: list[_Compiled] = []
        for term in terms:
            where = f"term {term.id}"
            combinations = tuple(tuple(self._add(p, words, where) for p in parts) for parts in term.any_of)
            self._terms.append(_Compiled(term, combinations, tuple(self._add(p, words, where) for p in term.unless)))
        self._terms_of: dict[int, list[int]] = {}
        for n, compiled in enumerate(self._terms):
            for combination in compiled.combinations:
                of = self._terms_of.setdefault(combination[0], [])
                if n not in of:
                    of.append(n)
        self._always = frozenset(n for n, pattern in enumerate(self._patterns) if pattern.literals is None)
        self._literals = _automaton(self._patterns)
        self._found: dict[tuple[bytes, frozenset[str]], tuple[Find, ...]] = {}

    def _note(self, pattern: Pattern) -> int:
        self._patterns.append(pattern)
        return len(self._patterns) - 1

    def _add(self, pattern: str, words: Mapping[str, Sequence[str]], where: str) -> int:
        expanded = expand(pattern, words)
        if expanded not in self._numbers:
            self._numbers[expanded] = self._note(Pattern(expanded, where))
        return self._numbers[expanded]

    def find_again(self, text: str, facts: frozenset[str] = frozenset()) -> Sequence[Find]:
        """`find` for messages, which come again with every later turn: the latest are kept by digest, never as text."""
        key = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest(), facts)
        found = self._found.pop(key, None)
        if found is None:
            found = tuple(self.find(text, facts))
        self._found[key] = found  # last again: the one unused for longest goes first
        if len(self._found) > _MOST_FOUND:
            del self._found[next(iter(self._found))]
        return found

    def find(self, text: str, facts: frozenset[str] = frozenset(), skipped: frozenset[str] = frozenset()) -> list[Find]:
        """Every term that occurs, active or not, in the order of their places.

        `facts` are what `needs` may ask for; `skipped` are groups that nobody will ask this text for.
        """
        possible = set(self._always)
        if self._literals is not None:
            for _, numbers in self._literals.iter(text):
                possible.update(numbers)
        reader = _Reader(text, self._patterns, self._cues, possible)
        wanted = {n for pattern in possible for n in self._terms_of.get(pattern, ())}
        found = []
        for n in sorted(wanted):
            compiled = self._terms[n]
            if compiled.term.group in skipped:
                continue
            if compiled.term.needs <= facts and (find := reader.find(compiled)) is not None:
                found.append(find)
        return sorted(found, key=lambda find: (find.start, find.end))


class _Reader:
    """One text; patterns are searched, and scopes told, only where a term asks for them, and once."""

    def __init__(
        self, text: str, patterns: Sequence[Pattern], cues: Mapping[str, CompiledCue], possible: set[int]
    ) -> None:
        self._text = EncodedText(text)
        self._patterns = patterns
        self._cues = cues
        self._possible = possible
        self._spans: dict[int, list[_Span]] = {}
        self._scopes: dict[tuple[int, int, str], bool] = {}

    def find(self, compiled: _Compiled) -> Find | None:
        """The term's first active combination; else its last inactive one; else nothing."""
        term = compiled.term
        found: Find | None = None
        excused: list[_Span] | None = None
        for combination in compiled.combinations:
            if not self._possible.issuperset(combination) or not all(self._at(pattern) for pattern in combination):
                continue
            if excused is None:
                excused = [
                    span for pattern in compiled.unless if pattern in self._possible for span in self._at(pattern)
                ]
            places = [_outside(self._at(pattern), excused) for pattern in combination]
            if _closest(places, term.within) is None:
                continue
            active = [[span for span in spans if not self._taken_back(span, term.passes)] for spans in places]
            chosen = _closest([a or p for a, p in zip(active, places, strict=True)], term.within)
            if chosen is None:
                continue
            scopes = frozenset().union(*(self._taken_back(span, term.passes) for span in chosen))
            start, end = min(s for s, _ in chosen), max(e for _, e in chosen)
            found = Find(term, start, end, scopes)
            if found.is_active:
                break
        return found

    def _at(self, pattern: int) -> list[_Span]:
        if pattern not in self._spans:
            self._spans[pattern] = self._patterns[pattern].spans(self._text)
        return self._spans[pattern]

    def _taken_back(self, span: _Span, passes: frozenset[str]) -> frozenset[str]:
        """Which of the scopes `passes` a place stands in."""
        return frozenset(name for name in passes if self._is_in(name, *span))

    def _is_in(self, name: str, start: int, end: int) -> bool:
        key = (start, end, name)
        if key not in self._scopes:
            if name == QUOTED:
                self._scopes[key] = is_quoted(self._text.text, start, end)
            else:
                self._scopes[key] = self._cues[name].applies(self._text, self._possible, start, end)
        return self._scopes[key]


def _automaton(patterns: Sequence[Pattern]) -> Any:
    """Literal to the numbers of the patterns that need it; `None` when there are none."""
    needing: dict[str, list[int]] = {}
    for n, pattern in enumerate(patterns):
        for literal in pattern.literals or ():
            needing.setdefault(literal, []).append(n)
    if not needing:
        return None
    automaton = ahocorasick.Automaton()
    for literal, numbers in needing.items():
        automaton.add_word(literal, tuple(numbers))
    automaton.make_automaton()
    return automaton


def _outside(spans: Sequence[_Span], excused: Sequence[_Span]) -> list[_Span]:
    if not excused:
        return list(spans)
    return [
        (start, end)
        for start, end in spans
        if not any(begin <= start < stop or start <= begin < end for begin, stop in excused)
    ]


def _closest(places: Sequence[Sequence[_Span]], within: int) -> tuple[_Span, ...] | None:
    """The tightest choice of one place per pattern, if it spans at most `within`; a single pattern: its first place."""
    if len(places) == 1:
        return (places[0][0],) if places[0] else None
    order = sorted((span, n) for n, spans in enumerate(places) for span in spans)
    last: dict[int, _Span] = {}
    best: tuple[int, tuple[_Span, ...]] | None = None
    for span, n in order:
        last[n] = span
        if len(last) < len(places):
            continue
        width = max(e for _, e in last.values()) - min(s for s, _ in last.values())
        if width <= within and (best is None or width < best[0]):
            best = (width, tuple(last.values()))
    return best[1] if best else None
