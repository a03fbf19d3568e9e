"""One pattern of the policy: compiled by RE2, and the literals of which a text must hold one for it to match.

RE2 takes time linear in the text whatever a policy's author writes. Looking for a thousand patterns one by one is still slow, and
RE2's own sets of patterns with gaps outgrow its memory, so one pass of Aho-Corasick over literals says first which patterns
are possible at all.
"""

from __future__ import annotations

import importlib
import re as stdlib_re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import re2

MOST_FINDS = 256  # of one pattern in one text: no sentence has more, and a message that has repeats itself
_MAX_MEMORY = 64 << 20
_MOST_LITERALS = 4000
_REFERENCE = stdlib_re.compile(r"\{([a-z][a-z0-9_]*)\}")


class TermError(ValueError):
    """A pattern or a reference that cannot be compiled; the message names it."""


def expand(pattern: str, words: Mapping[str, Sequence[str]], depth: int = 0) -> str:
    """`{name}` becomes the alternation of that word list. Raises `TermError` for a list that is not there."""
    if depth > 4:
        raise TermError(f"word lists refer to each other in a circle: {pattern[:60]!r}")

    def replace(match: stdlib_re.Match[str]) -> str:
        name = match[1]
        if name not in words:
            raise TermError(f"there is no word list {name!r} (in {pattern[:60]!r})")
        return "(?:" + "|".join(expand(str(word), words, depth + 1) for word in words[name]) + ")"

    expanded = _REFERENCE.sub(replace, pattern)
    return expanded if depth else _with_word_ends(expanded)


def _with_word_ends(pattern: str) -> str:
    """A plain English word matches as a word: "er" is not found in "her". Patterns with signs say their own ends."""
    return rf"\b{pattern}\b" if stdlib_re.fullmatch(r"[a-z][a-z0-9 '-]*", pattern) else pattern


class EncodedText:
    """A text as RE2 reads it, in UTF-8, and the way back from its bytes to its characters."""

    __slots__ = ("_places", "encoded", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.encoded = text.encode()
        self._places: list[int] | None = None

    def character(self, byte: int) -> int:
        """The number of the character that begins at a byte; of the text's end as well."""
        if len(self.encoded) == len(self.text):
            return byte
        if self._places is None:
            self._places = []
            for n, character in enumerate(self.text):
                self._places += [n] * len(character.encode())
            self._places.append(len(self.text))
        return self._places[byte]


class Pattern:
    """A compiled pattern. `literals` is `None` when a text without any particular literal may match."""

    __slots__ = ("_anchor", "_match", "literals")

    def __init__(self, expanded: str, where: str) -> None:
        """Raises `TermError` naming `where` the pattern is from."""
        options = re2.Options()
        options.max_mem = _MAX_MEMORY
        options.log_errors = False
        try:
            compiled = re2.compile(expanded, options)
        except re2.error as error:
            raise TermError(f"{where}: the pattern {expanded[:80]!r} does not compile ({error})") from error
        # Under the package's own `search`, which encodes the text and counts its characters anew for every pattern.
        self._match = compiled._regexp.Match
        self._anchor = re2._re2.RE2.Anchor.UNANCHORED
        self.literals = needed_literals(expanded)

    def is_in(self, encoded: bytes) -> bool:
        return bool(self._match(self._anchor, encoded, 0, len(encoded))[0][0] >= 0)

    def spans(self, text: EncodedText) -> list[tuple[int, int]]:
        """Where it matches, in characters; at most `MOST_FINDS`, and never the empty text."""
        encoded, size = text.encoded, len(text.encoded)
        found: list[tuple[int, int]] = []
        at = 0
        while at <= size and len(found) < MOST_FINDS:
            begin, end = self._match(self._anchor, encoded, at, size)[0]
            if begin < 0:
                break
            if end > begin:
                found.append((text.character(begin), text.character(end)))
                at = end
            else:
                at = end + 1
                while at < size and encoded[at] & 0xC0 == 0x80:  # not into the middle of a character
                    at += 1
        return found


def needed_literals(pattern: str) -> frozenset[str] | None:
    """Texts of which every match holds at least one; `None` when there is no such set, or none of use.

    Reads the pattern as Python's own parser does, whose syntax RE2's is nearly a part of; what that does not understand has
    no literals, which costs time and loses nothing.
    """
    # The interpreter's own reader of patterns, since nothing else takes one apart; what it lacks costs time, not finds.
    constants, parser = importlib.import_module("re._constants"), importlib.import_module("re._parser")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = parser.parse(pattern)
    except (stdlib_re.error, OverflowError, RecursionError):
        return None
    found = _needed(tree, constants)
    return found if found and len(found) <= _MOST_LITERALS else None


def _needed(sequence: Any, constants: Any) -> frozenset[str] | None:
    """The best of what the parts of a sequence need: the longest literals, of those the fewest."""
    candidates: list[frozenset[str]] = []
    run: list[str] = []

    def close() -> None:
        if run:
            candidates.append(frozenset({"".join(run)}))
            run.clear()

    for kind, value in sequence:
        if kind is constants.LITERAL:
            run.append(chr(value))
            continue
        close()
        part = _needed_by(kind, value, constants)
        if part:
            candidates.append(part)
    close()
    return max(candidates, key=_worth, default=None)


def _needed_by(kind: Any, value: Any, constants: Any) -> frozenset[str] | None:
    if kind is constants.SUBPATTERN:
        return _needed(value[-1], constants)
    if kind is constants.BRANCH:
        parts = [_needed(branch, constants) for branch in value[1]]
        return None if any(part is None for part in parts) else frozenset().union(*(p for p in parts if p))
    if kind in (constants.MAX_REPEAT, constants.MIN_REPEAT) and value[0] > 0:
        return _needed(value[2], constants)
    if kind is constants.IN and all(item[0] is constants.LITERAL for item in value):
        return frozenset(chr(item[1]) for item in value)
    return None


def _worth(literals: frozenset[str]) -> tuple[int, int]:
    """A Chinese character tells as much as three letters."""
    return min(sum(3 if c > "\u2e80" else 1 for c in text) for text in literals), -len(literals)
