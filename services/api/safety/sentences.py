"""Cuts a growing text into whole sentences; the cuts depend on the text alone, never on how it arrived.

A sentence ends at 。！？；…! ? ; a line end, or a full stop that is no decimal point, abbreviation or list number, together
with the marks and closing quotes that follow it. Whether more of those follow is seen from the next character, so a
sentence is given when that has come. A text without any end is cut at `LONGEST` characters, on a clause mark if it has one.
"""

from __future__ import annotations

import re

LONGEST = 240  # about four sentences; the judge sees what came before a forced cut again
_ENDS = "。！？；…!?;｡"
_CLOSERS = "”’」』）)]】》\"'*_`"
_CLAUSE = re.compile(r"[，,、：:—\s](?=[^，,、：:—\s]*$)")
_END = re.compile(rf"[{re.escape(_ENDS)}\n]|[.．]")
# A full stop after one of these, or after a single letter or a list's number, ends nothing.
_ABBREVIATION = re.compile(
    r"(?:^|[^A-Za-z])(?:[A-Za-z]|e\.g|i\.e|etc|vs|dr|mr|mrs|ms|prof|st|no|fig|approx|max|min|b\.i\.d|t\.i\.d|q\.i\.d|q\.d|p\.o|p\.r\.n|i\.v|i\.m|a\.m|p\.m|u\.s)$",
    re.IGNORECASE,
)
_LIST_NUMBER = re.compile(r"(?:^|\n)\s*\d{1,2}$")
# Full-width digits are digits here: ０．５ is no end.
_CJK = re.compile(r"[\u3000-\u303f\u3400-\u9fff\uf900-\ufaff\uff00-\uff0f\uff1a-\uffef]")


class SentenceCutter:
    """Holds the sentence that is not whole yet. One for the reasoning, one for the answer."""

    def __init__(self) -> None:
        self._held = ""
        self._scanned = 0

    def add(self, text: str) -> list[str]:
        """The sentences that this piece made whole, in order, each with its end marks and following blanks."""
        self._held += text
        return self._take(final=False)

    def end(self) -> list[str]:
        """What is left when the text is over."""
        pieces = self._take(final=True)
        rest, self._held = self._held, ""
        self._scanned = 0
        return [*pieces, rest] if rest else pieces

    def _take(self, final: bool) -> list[str]:
        pieces: list[str] = []
        start = 0
        while True:
            end = self._find_end(start, final)
            if end is None:
                break
            pieces.append(self._held[start:end])
            start = self._scanned = end
        self._held = self._held[start:]
        self._scanned = max(0, self._scanned - start)
        return pieces

    def _find_end(self, start: int, final: bool) -> int | None:
        """Where the sentence that begins at `start` ends, if that is certain; else how far was looked is kept."""
        held, limit = self._held, start + LONGEST
        at = max(start, self._scanned)
        while match := _END.search(held, at, limit):
            after = _after_marks(held, match.end(), start, limit)
            if after >= min(len(held), limit) and after < limit and not final:
                self._scanned = match.start()
                return None  # more marks may follow
            if match[0] not in ".．" or _full_stop_ends(held, start, match.start()):
                return min(after, limit)
            at = match.end()
        self._scanned = min(len(held), limit)
        if len(held) <= limit:
            return None
        return _forced_cut(held, start, limit)


def _after_marks(text: str, at: int, start: int, limit: int) -> int:
    """Past further end marks, closing quotes and blanks."""
    while at < min(len(text), limit):
        character = text[at]
        if character in _CLOSERS:
            # A straight quote closes only what was opened in this sentence.
            if character in "\"'*_`" and text.count(character, start, at) % 2 == 0:
                return at
        elif character not in _ENDS and not character.isspace() and character not in ".．":
            return at
        at += 1
    return at


def _full_stop_ends(text: str, start: int, at: int) -> bool:
    before, after = text[start:at], text[at + 1 : at + 2]
    if not before.strip() or _LIST_NUMBER.search(before):
        return False
    if after and not after.isspace() and after not in _CLOSERS and after not in _ENDS and after not in ".．":
        return bool(_CJK.match(after)) and bool(_CJK.match(before[-1]))
    return not _ABBREVIATION.search(before[-8:])


def _forced_cut(text: str, start: int, limit: int) -> int:
    """On the last clause mark of the second half, else at the limit."""
    window = text[start:limit]
    match = _CLAUSE.search(window)
    return start + match.end() if match and match.end() > LONGEST // 2 else limit
