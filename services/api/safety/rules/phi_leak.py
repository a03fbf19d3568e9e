"""Blocks a reply that identifies another person, or that tells what was said in another session.

Numbers are looked for here and not in the policy: they need digit boundaries (a word boundary fails beside Chinese, as Presidio
found), and the original text, since stars that mask a number are gone from the normalised one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from services.api.safety.case import Case, Sentence
from services.api.safety.verdicts import Hit, Verdict

_FEWEST_DIGITS = 4
_DIGITS = re.compile(r"[0-9]")
_SEPARATED = r"[\s\-.()]{0,2}"
_BEFORE, _AFTER = r"(?<![0-9a-z])", r"(?![0-9])"
_IDENTITY = re.compile(rf"{_BEFORE}[1-9](?:[\s-]?[0-9]){{16}}[\s-]?[0-9x]{_AFTER}")
_MOBILE = re.compile(rf"(?<![0-9])(?:\+?86{_SEPARATED})?1[3-9][0-9](?:{_SEPARATED}[0-9]){{8}}{_AFTER}")
_SSN = re.compile(rf"{_BEFORE}[0-9]{{3}}-[0-9]{{2}}-[0-9]{{4}}{_AFTER}")
_EMAIL = re.compile(r"[a-z0-9._%+-]+@[a-z0-9-]+\.[a-z]{2,}")
_PHONE = re.compile(rf"(?<![0-9])\+?[0-9](?:{_SEPARATED}[0-9]){{6,13}}{_AFTER}")
_RECORD = re.compile(r"(?<![a-z0-9])[a-z]{0,4}[ -]?(?:[0-9][0-9a-z-]{3,20}|[a-z][0-9]{4,12})(?![0-9])")
_LABEL_GAP = 18  # characters between "record number" and the number
_MASK = re.compile(r"[*＊×✱•·●]|x{2,}|X{2,}|\.{3}|…")
# Numbers that name a thing, not a person: approvals, papers, registrations; they stand right before.
_THING = re.compile(
    r"(?:准字|批准文号|注册证|注册号|登记号|doi|isbn|issn|pmid|pmc|nct|chictr|订单|批号|国标|gb|iso|编码|条码|版本)[^,。]{0,6}$"
)
_OWN = re.compile(r"(?:您|你)(?:自己)?(?:的|提供的|刚才说的|预留的|填写的|给的)|\byour\b")
# A name without any word for a person: "王建国,电话…", "John Example, phone …".
_NAME = re.compile(
    r"(?:^|[,。:;、“(是叫])[王李张刘陈杨黄赵吴周徐孙马朱胡郭何林高罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤][一-龥某]{1,2}[,:(的、]"
)
_LATIN_NAME = re.compile(r"\b[A-Z][a-z]+ [A-Z][a-z-]+(?:,|'s\b| \(|:)")
_FREE_CALL = re.compile(r"^(?:\+?1)?(?:400|800|95[0-9]{3}|96[0-9]{3}|12[0-9]{3}|116)")


@dataclass(frozen=True, slots=True)
class _Number:
    kind: str
    start: int
    end: int


class PhiLeak:
    """Somebody else's number beside a word for a person, an address of one, or another session's content."""

    name = "phi_leak"

    def assess(self, case: Case) -> None:
        """What the user has written may be said back: it is kept as digits and as text."""
        said = " ".join(said.text for said in case.said if said.role == "user")
        case.data[self.name] = (_bare(said), said)

    def judge(self, sentence: Sentence, case: Case) -> Iterable[Hit]:
        hits = [sentence.hit(self.name, Verdict.BLOCK, find) for find in sentence.active("phi")]
        if hits:
            return hits
        told, user = case.data.get(self.name, ("", ""))
        numbers = _numbers(sentence)
        about_person = self._names_person(sentence, case)
        if not about_person:  # an identity number is somebody's, whoever is named
            numbers = [number for number in numbers if number.kind in ("identity", "ssn")]
        if numbers:
            hits = [
                sentence.hit_at(self.name, Verdict.BLOCK, f"number-{number.kind}", number.start, number.end)
                for number in numbers
                if _bare(sentence.text[number.start : number.end]) not in told
            ]
        if about_person:
            hits += [
                sentence.hit(self.name, Verdict.BLOCK, find)
                for find in sentence.active("phi_address")
                if not _OWN.search(sentence.text[: find.start]) and sentence.text[find.start + 2 : find.end] not in user
            ]
        return hits

    def end(self, case: Case) -> Iterable[Hit]:
        return ()

    def _names_person(self, sentence: Sentence, case: Case) -> bool:
        """Here or in the sentence before: "他叫王某。电话是…"."""
        if sentence.of_group("phi_person"):
            return True
        if _NAME.search(sentence.text) or _LATIN_NAME.search(sentence.original):
            return True
        earlier = next((s for s in reversed(case.reply) if s.part == sentence.part), None)
        return earlier is not None and bool(earlier.of_group("phi_person"))


def _numbers(sentence: Sentence) -> list[_Number]:
    """The numbers that are a person's: by their form, or by the word before them."""
    text = sentence.text
    count = len(_DIGITS.findall(text))
    found = [_Number("email", *match.span()) for match in _EMAIL.finditer(text)] if "@" in text else []
    if count >= _FEWEST_DIGITS:
        for label in sentence.of_group("phi_label"):
            found += _labelled(text, label.end)
    if count >= 7:
        public = bool(sentence.of_group("phi_public"))
        for kind, pattern in (("identity", _IDENTITY), ("mobile", _MOBILE), ("ssn", _SSN)):
            found += [_Number(kind, *match.span()) for match in pattern.finditer(text)]
        if not public and (sentence.of_group("phi_phone") or _LATIN_NAME.search(sentence.original)):
            found += [
                _Number("phone", *match.span())
                for match in _PHONE.finditer(text)
                if not _FREE_CALL.match(_bare(match[0]))
            ]
    return [number for number in found if not _is_excused(sentence, number)]


def _labelled(text: str, end: int) -> list[_Number]:
    match = _RECORD.search(text, end, min(len(text), end + _LABEL_GAP + 24))
    if match is None or match.start() > end + _LABEL_GAP or len(_DIGITS.findall(match[0])) < _FEWEST_DIGITS:
        return []
    return [_Number("record", *match.span())]


def _is_excused(sentence: Sentence, number: _Number) -> bool:
    """Masked in the original, a thing's number, or said to be the reader's own."""
    first, last = sentence.norm.span(number.start, number.end)
    if _MASK.search(sentence.original[max(0, first - 1) : last + 2]):
        return True
    before = sentence.text[max(0, number.start - 16) : number.start]
    return bool(_THING.search(before) or _OWN.search(before))


def _bare(text: str) -> str:
    return "".join(character for character in text if character.isalnum())
