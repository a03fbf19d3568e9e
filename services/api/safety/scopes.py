"""The scope of a find: denied, hedged, asked, quoted, ... as the words around it tell.

The model is ConText's (Harkema et al. 2009, J Biomed Inform 42:839): a cue has a direction, a reach, marks that end it, and
expressions that only look like it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from services.api.safety.patterns import EncodedText, Pattern, expand

CLAUSE_MARKS = ",;:、!?。…\n"
SENTENCE_MARKS = "。!?;…\n"
QUOTED = "quoted"
_PAIRS = (("“", "”"), ('"', '"'), ("《", "》"))


@dataclass(frozen=True, slots=True)
class Cue:
    """What gives a scope. `before` and `after` stand on that side of the find, at most `reach` characters away."""

    name: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    anywhere: tuple[str, ...] = ()
    reach: int = 8
    stops: str = CLAUSE_MARKS
    unless: tuple[str, ...] = ()


class CompiledCue:
    """A cue ready to be looked for. `note` is told each pattern, and gives the number under which it is possible or not."""

    def __init__(self, cue: Cue, words: Mapping[str, Sequence[str]], note: Callable[[Pattern], int]) -> None:
        def compiled(patterns: Sequence[str]) -> Pattern | None:
            if not patterns:
                return None
            return Pattern("|".join(f"(?:{expand(p, words)})" for p in patterns), f"cue {cue.name}")

        self._cue = cue
        self._before, self._after = compiled(cue.before), compiled(cue.after)
        self._anywhere, self._unless = compiled(cue.anywhere), compiled(cue.unless)
        sides = ((side, note(side)) for side in (self._before, self._after, self._anywhere) if side)
        self._slots = {id(side): slot for side, slot in sides}

    def applies(self, text: EncodedText, possible: set[int], start: int, end: int) -> bool:
        """Whether characters `start` to `end` stand in this scope. `possible`: patterns that the whole text may hold."""
        cue, plain = self._cue, text.text
        if self._is_possible(self._anywhere, possible) and self._anywhere and self._anywhere.is_in(text.encoded):
            return True
        if self._is_possible(self._before, possible):
            window = plain[_clause_start(plain, start, cue.stops, cue.reach) : start]
            if window and self._is_before(window):
                return True
        if self._is_possible(self._after, possible) and self._after:
            window = plain[end : _clause_end(plain, end, cue.stops, cue.reach)]
            encoded = window.encode()
            if window and self._after.is_in(encoded) and not (self._unless and self._unless.is_in(encoded)):
                return True
        return False

    def _is_possible(self, side: Pattern | None, possible: set[int]) -> bool:
        return side is not None and self._slots[id(side)] in possible

    def _is_before(self, window: str) -> bool:
        """A cue that is not part of what only looks like one (不仅 is no 不)."""
        assert self._before is not None
        text = EncodedText(window)
        if not self._before.is_in(text.encoded):
            return False
        excused = self._unless.spans(text) if self._unless else []
        return any(
            not any(begin <= start and end <= stop for begin, stop in excused)
            for start, end in self._before.spans(text)
        )


def is_quoted(text: str, start: int, end: int) -> bool:
    """Whether characters `start` to `end` lie between quotation marks."""
    for opening, closing in _PAIRS:
        if opening == closing:
            if text.count(opening, 0, start) % 2 == 1 and opening in text[end:]:
                return True
        elif text.rfind(opening, 0, start) > text.rfind(closing, 0, start) and closing in text[end:]:
            return True
    return False


def _clause_start(text: str, at: int, stops: str, reach: int) -> int:
    begin = max(0, at - reach)
    return max((text.rfind(stop, begin, at) + 1 for stop in stops), default=0) or begin


def _clause_end(text: str, at: int, stops: str, reach: int) -> int:
    finish = min(len(text), at + reach)
    return min((found for stop in stops if (found := text.find(stop, at, finish)) >= 0), default=finish)
