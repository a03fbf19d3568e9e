"""Text as the rules see it: one width, one script, no invisible characters; and the way back to the original.

Full-width forms, traditional characters, zero-width characters, spaces inside a Chinese word and Markdown's stars all
stand between a term and its match, so matching is done on normalised text and the original is what is released.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

_CJK = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_CJK_OR_MARK = re.compile(rf"[{_CJK}\u3000-\u303f，。！？；：、]")
_SPELT = re.compile(r"(?<![a-z])(?:[a-z] ){3,}[a-z](?![a-z])")  # "g u a r a n t e e d"
# Dropped wherever they stand: Markdown's emphasis, and marks that are put into words to hide them.
_DROPPED = frozenset("*_~`^|\u00b7\u30fb\u2022")
_INVISIBLE = frozenset({"Cf", "Cc", "Co", "Cs", "Cn", "Mn", "Me"})
_QUOTES = {"「": "“", "」": "”", "『": "“", "』": "”", "‘": "'", "’": "'", "‛": "'", "〝": "“", "〞": "”", "″": '"'}
_PLAIN = {"，": ",", "、": "、", "；": ";", "：": ":", "！": "!", "？": "?", "（": "(", "）": ")"}


@dataclass(frozen=True, slots=True)
class Normalised:
    """`text` for matching; `origin[i]` is the place in the original of its character i, and one more for its end."""

    text: str
    origin: tuple[int, ...]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The original's range that holds normalised characters `start` to `end`."""
        if start >= end:
            return self.origin[start], self.origin[start]
        return self.origin[start], self.origin[end - 1] + 1


def normalise(text: str) -> Normalised:
    """NFKC, simplified, lower case; invisible characters and emphasis gone; no spaces beside Chinese, one elsewhere."""
    out: list[str] = []
    origin: list[int] = []
    space_at = -1
    for place, character in enumerate(text):
        for piece in _plain(character):
            if piece == " ":
                if out and space_at < 0:
                    space_at = place
                continue
            if space_at >= 0:
                if not (_is_cjk(piece) or _is_cjk(out[-1])):
                    out.append(" ")
                    origin.append(space_at)
                space_at = -1
            out.append(piece)
            origin.append(place)
    joined = "".join(out)
    if " " in joined:
        joined, origin = _join_spelt(joined, origin)
    origin.append(len(text))
    return Normalised(joined, tuple(origin))


def _join_spelt(text: str, origin: list[int]) -> tuple[str, list[int]]:
    """Letters with a space after each become one word."""
    dropped = {n for match in _SPELT.finditer(text) for n in range(*match.span()) if text[n] == " "}
    if not dropped:
        return text, origin
    kept = [n for n in range(len(text)) if n not in dropped]
    return "".join(text[n] for n in kept), [origin[n] for n in kept]


@functools.lru_cache(maxsize=20_000)
def _is_cjk(character: str) -> bool:
    return _CJK_OR_MARK.match(character) is not None


@functools.lru_cache(maxsize=20_000)
def _plain(character: str) -> str:
    """What one character becomes: nothing, itself, or several."""
    if character in "\n\r\t\u2028\u2029":
        return " "
    if character in _DROPPED:
        return ""
    if character in _QUOTES:
        return _QUOTES[character]
    pieces = []
    for piece in unicodedata.normalize("NFKC", character):
        if piece.isspace():
            pieces.append(" ")
        elif unicodedata.category(piece) not in _INVISIBLE:
            pieces.append(_QUOTES.get(piece) or _PLAIN.get(piece) or _simplified(piece).lower())
    return "".join(pieces)


def _simplified(character: str) -> str:
    """Character by character, so that places stay comparable; phrases that need more than that are not in the rules."""
    return _converter()(character) if _CJK_OR_MARK.match(character) else character


@functools.lru_cache(maxsize=1)
def _converter() -> Callable[[str], str]:
    import opencc

    convert: Callable[[str], str] = opencc.OpenCC("t2s").convert
    return convert
