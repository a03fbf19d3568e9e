"""Reasoning for people: connectives bold, guidelines and drugs linked, as Markdown.

Works sentence by sentence, so that a term cut by a delta is still found and any chunking gives the same text. What is code, a
link or a tag already is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

from services.api.thinking.guidelines import Guidelines

SENTENCE_END = re.compile(r"[。！？；\n]+|[.!?;](?=\s)")
LONGEST_WAIT = 500  # characters that a span may stay open before sentences are cut in it all the same
_CONNECTIVES = re.compile(
    r"(?<!\*)(?:首先|其次|再次|然后|最后|因此|综上所述|综上|所以"
    r"|\b(?:first(?:ly)?|second(?:ly)?|third(?:ly)?|next|then|finally|therefore|so|in summary)\b(?=[\s,:，：]))(?!\*)",
    re.IGNORECASE,
)
_EDITION = r"(?:\s?[（(][^（()）\[\]`<>*\n]{0,12}\d{4}[^（()）\[\]`<>*\n]{0,8}[)）])?"
# "2023 AHA/ACC高血压指南", "中国2型糖尿病防治指南(2020年版)", "NICE NG136", "KDIGO 2024", "WHO guidelines on ..."
_GUIDELINES = (
    rf"《[^《》\[\]`<>*\n]{{2,40}}(?:指南|共识|规范|标准)[^《》\[\]`<>*\n]{{0,20}}》{_EDITION}"
    r"|(?<![A-Za-z\d])NICE\s*(?:guidelines?\s*)?(?:NG|CG)\s?\d{1,3}(?!\d)"
    r"|(?:\d{4}\s*年?版?\s*)?[A-Z]{2,6}(?:/[A-Z]{2,6})*\s*(?:\d{4}\s*年?\s*)?[\u4e00-\u9fa5\d]{0,14}指南"
    rf"|(?:中国|国家)[\u4e00-\u9fa5\d]{{2,16}}(?:指南|专家共识){_EDITION}"
    r"|(?:\d{4}\s+)?(?<![A-Za-z])[A-Z]{2,6}(?:/[A-Z]{2,6})*\s+(?:\d{4}\s+)?(?:[A-Za-z-]+\s+){0,4}[Gg]uidelines?\b(?:\s+\d{4}\b)?"
    r"|(?<![A-Za-z])ADA\s+Standards(?:\s+of\s+(?:Medical\s+)?Care)?\b(?:\s+in\s+Diabetes\b)?(?:\s+\d{4}\b)?"
    r"|(?:\d{4}\s*年?版?\s*)?(?<![A-Za-z])ADA\s*(?:糖尿病)?(?:医学)?(?:诊疗|诊治)标准"
    r"|\bSurviving Sepsis Campaign(?:\s+guidelines?)?\b(?:\s+\d{4}\b)?"
)
_TOPIC = re.compile(r"\s+(?:for|on)\s[^.,;:()\n]{1,80}")  # behind "guideline": tells which, and stays outside the link
# Already something: code, a link or picture, a tag, a bare address.
_TAKEN = r"`+[^`\n]*`*|!?\[[^\[\]\n]*\]\([^()\n]*(?:\([^()\n]*\)[^()\n]*)*\)|</?[A-Za-z][^<>\n]*>|https?://[^\s，。；）】》]+"
_OPEN = re.compile(r"`[^`]*$|</?[A-Za-z][^<>]*$|\[[^\[\]]*(?:\]\([^()]*(?:\([^()]*\)?[^()]*)*)?$")
_WHOLE = re.compile(
    r"(`+)[^`\n]+\1|!?\[[^\[\]\n]*\]\([^()\n]*(?:\([^()\n]*\)[^()\n]*)*\)|</?[A-Za-z][^<>\n]*>|\[[^\[\]\n]*\](?!\()"
)
_FENCE = re.compile(r"\s{0,3}(?:(`{3,})[^`\n]*|(~{3,})[^\n]*)\n?")
_SEARCH = "https://pubmed.ncbi.nlm.nih.gov/?term={}"
_HAN = re.compile(r"[\u4e00-\u9fff]")


class Verbatim(str):
    """A line of a fenced code block: not marked up."""


@dataclass(frozen=True)
class Annotator:
    """Marks up whole sentences. `drugs` maps a name as written to the address that it links to."""

    drugs: Mapping[str, str]
    guidelines: Guidelines | None = None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        names = sorted(self.drugs, key=len, reverse=True)
        latin = [re.escape(n) for n in names if n.isascii()]
        others = [re.escape(n) for n in names if not n.isascii()]
        drugs = (
            "|".join([*others, *([rf"(?<![A-Za-z\d])(?:{'|'.join(latin)})(?![A-Za-z\d])"] if latin else [])]) or r"(?!)"
        )
        bodies = sorted(self.guidelines.organisations, key=len, reverse=True) if self.guidelines else []
        body = rf"(?:{'|'.join(re.escape(name.upper()) for name in bodies)})" if bodies else r"(?!)"
        # A body and a year stand for its guideline, but only bodies that are known: "ICU 2024" is none.
        dated = (
            rf"(?<![A-Za-z]){body}(?:/[A-Z]{{2,6}})*\s?\d{{4}}(?!\d)"
            rf"|(?<!\d)\d{{4}}\s?年?\s?{body}(?:/[A-Z]{{2,6}})*(?![A-Za-z])"
        )
        return re.compile(
            f"(?P<taken>{_TAKEN})|(?P<guideline>{_GUIDELINES}|{dated})"
            f"|(?P<drug>(?i:{drugs}))|(?P<word>(?i:{_CONNECTIVES.pattern}))"
        )

    def annotate(self, sentence: str) -> str:
        return sentence if isinstance(sentence, Verbatim) else self._pattern.sub(self._replace, sentence)

    def _replace(self, match: re.Match[str]) -> str:
        text = match[0]
        if match["taken"]:
            return text
        if match["word"]:
            return f"**{text}**"
        if match["drug"]:
            # Two letters of different case may be one drug's name, whose key is in lower case.
            address = self.drugs.get(text) or self.drugs.get(text.lower())
            return f"[{text}]({address})" if address else text
        topic = _TOPIC.match(match.string, match.end()) if match["guideline"][-1] in "eEsS" else None
        return self._guideline(text, topic[0] if topic else "")

    def _guideline(self, text: str, topic: str) -> str:
        known = self.guidelines.resolve(text + topic) if self.guidelines else None
        if known is not None:
            return f"[{text}]({_address(known.address)})"
        mark = "（未核实）" if _HAN.search(text) else " (unverified)"
        return f"[{text}]({_SEARCH.format(quote(text.strip('《》'), safe=''))}){mark}"


def _address(address: str) -> str:
    """Brackets of a DOI would end the link."""
    return address.replace("(", "%28").replace(")", "%29")


class SentenceBuffer:
    """Gives whole sentences of a growing text, each by itself; `end` gives the rest. Lines of code blocks are `Verbatim`.

    Where a sentence ends is decided by the text before the end and one character behind it, never by the chunks. Inside
    code, a link or a tag nothing is cut before the line's end.
    """

    def __init__(self) -> None:
        self._text = ""
        self._line = ""  # what was given of the line that goes on
        self._fence = ""  # what the open code block began with

    def feed(self, text: str) -> list[str]:
        self._text += text
        sentences = []
        while (end := self._next_end()) is not None:
            sentences.append(self._given(self._text[:end]))
            self._text = self._text[end:]
        return sentences

    def end(self) -> str:
        rest, self._text = self._text, ""
        return self._given(rest)

    def _next_end(self) -> int | None:
        for mark in SENTENCE_END.finditer(self._text):
            # A mark at the very end may go on ("。。", "\n\n"): it waits for the next character.
            if mark.end() >= len(self._text):
                return None
            if "\n" in mark[0] or mark.end() > LONGEST_WAIT or not self._is_open(self._text[: mark.start()]):
                return mark.end()
        return None

    def _is_open(self, begun: str) -> bool:
        line = self._line + begun
        if self._fence or line.lstrip().startswith(("```", "~~~")):
            return True
        return bool(_OPEN.search(_WHOLE.sub("", line)))

    def _given(self, piece: str) -> str:
        line, newline, after = (self._line + piece).partition("\n")
        found = _FENCE.fullmatch(line)
        is_code = bool(self._fence or found)
        if newline and found:
            marks = found[1] or found[2]
            if not self._fence:
                self._fence = marks
            elif marks.startswith(self._fence) and line.strip() == marks:
                self._fence = ""
        self._line = after.rpartition("\n")[2] if newline else line
        return Verbatim(piece) if is_code else piece
