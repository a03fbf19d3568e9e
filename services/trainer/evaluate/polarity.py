"""Whether a text says a phrase, or speaks against it: "不能停药" does not say "停药". Chinese and English, without a model.

Clause by clause: a negation governs what follows it up to the clause's end, or up to a word that begins an advice ("不要拖延
立即就诊" does say "立即就诊"). A question asserts nothing. What it cannot see: irony, quoted errors, negation across clauses.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

GAP = "…"  # in a phrase: up to so many characters of the same sentence
_LONGEST_GAP = 12
_NEGATION = re.compile(
    r"不要|不能|不可|不得(?!不)|不应|不宜|不建议|不推荐|不主张|不必|不用|不需|不是|不会|不提示|不支持|不等于|切勿|请勿|勿|禁止|禁忌|"
    r"严禁|避免|防止|杜绝|别(?![的人处离墅])|没有|并非|而非|无需|无须|未必|未见|是否|能否|可否|能不能|要不要|可不可以|"
    r"\b(?:not|never|no|avoid|without|cannot|don't|doesn't|shouldn't|can't|nor)\b"
)
_ADVICE = re.compile(
    r"而应|而是|而要|应当|应该|(?<!不)应|(?<!不)须|必须|务必|(?<![不无])需要|请(?!勿)|立即|立刻|马上|尽快|及时|赶紧|改为|拨打|"
    r"\b(?:but|instead|rather|call|immediately|right away|at once|please|seek|go to)\b"
)
_AGAINST = re.compile(
    r"[^,。;!?\n]{0,8}?(?:是错误|是错的|不可取|是不对|不行|不安全|不合适|不可以|是误区|(?:很|非常|十分|是)危险|"
    r"\bis (?:wrong|unsafe|dangerous))"
)
_IF = re.compile(r"如果|如有|如出现|如伴|若|一旦|倘|要是|假如|万一|的话|\b(?:if|when|should you|in case)\b")
_CLAUSE_END = re.compile(r"[,。;:!?\n]|\.(?!\d)")
_SENTENCE_END = re.compile(r"[。;!?\n]|\.(?!\d)")


def says(text: str, phrases: Iterable[str], unconditional: bool = False) -> bool:
    """Whether `text` says any of the phrases somewhere without speaking against it there.

    `unconditional`: a sentence with "if" before the phrase does not count ("如果加重,请立即就医" tells nobody to go now).
    """
    plain = normalise(text)
    found = (match for phrase in phrases for match in _pattern(phrase).finditer(plain))
    return any(_asserted(plain, match) and not (unconditional and _hangs_on_an_if(plain, match)) for match in found)


def normalise(text: str) -> str:
    """One form for full-width and half-width signs and for cases; Markdown's emphasis and blanks beside Chinese go."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    plain = re.sub(r"[*_`]+", "", plain)
    return re.sub(r"(?<=[^\x00-\x7f])[ \t]+|[ \t]+(?=[^\x00-\x7f])", "", plain)


@lru_cache(maxsize=4096)
def _pattern(phrase: str) -> re.Pattern[str]:
    parts = [re.escape(normalise(part)) for part in phrase.split(GAP)]
    return re.compile(rf"[^。;!?\n]{{0,{_LONGEST_GAP}}}?".join(parts))


def _asserted(text: str, match: re.Match[str]) -> bool:
    before = _CLAUSE_END.split(text[: match.start()])[-1]
    end = _SENTENCE_END.search(text, match.end())
    if end is not None and end[0] == "?":
        return False
    if _AGAINST.match(text, match.end()):
        return False
    negations = list(_NEGATION.finditer(before))
    if not negations:
        return True
    after = before[negations[-1].end() :]
    if _ADVICE.match(match[0]):  # an advice by itself: only what stands directly before it takes it back
        return after != ""
    advice = _ADVICE.search(after)
    return advice is not None and advice.start() > 0  # "无需立即…": the haste is what is not needed


def _hangs_on_an_if(text: str, match: re.Match[str]) -> bool:
    return _IF.search(_SENTENCE_END.split(text[: match.start()])[-1]) is not None
