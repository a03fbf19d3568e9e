"""Reasoning for people: connectives bold, guidelines and drugs linked, as Markdown; and the article's markers.

Works sentence by sentence, so that a term cut by a delta is still found and any chunking gives the same text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

SENTENCE_END = re.compile(r"[。！？；\n]+|[.!?;](?=\s)")
_CONNECTIVES = re.compile(
    r"首先|其次|再次|然后|最后|因此|综上所述|综上|所以"
    r"|\b(?:first(?:ly)?|second(?:ly)?|third(?:ly)?|next|then|finally|therefore|so|in summary)\b(?=[\s,:，：])",
    re.IGNORECASE,
)
# "2023 AHA/ACC高血压指南", "中国高血压防治指南(2024年修订版)", "NICE guideline", "WHO guidelines on ..."
_GUIDELINES = re.compile(
    r"(?:\d{4}\s*年?版?\s*)?[A-Z]{2,6}(?:/[A-Z]{2,6})*\s*[\u4e00-\u9fa5]{0,12}指南"
    r"|《[^《》\n]{2,40}(?:指南|共识|规范)[^《》\n]{0,20}》"
    r"|(?:中国|国家)[\u4e00-\u9fa5]{2,14}(?:指南|专家共识)"
    r"|(?:\d{4}\s+)?\b[A-Z]{2,6}(?:/[A-Z]{2,6})*\s+(?:[a-z-]+\s+){0,3}guidelines?\b"
)
_GUIDELINE_SEARCH = "https://pubmed.ncbi.nlm.nih.gov/?term={}"


@dataclass(frozen=True)
class Annotator:
    """Marks up whole sentences. `drugs` maps a name as written to the address that it links to."""

    drugs: Mapping[str, str]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        names = sorted(self.drugs, key=len, reverse=True)
        latin = [re.escape(n) for n in names if n.isascii()]
        others = [re.escape(n) for n in names if not n.isascii()]
        drugs = "|".join([*others, *([rf"\b(?:{'|'.join(latin)})\b"] if latin else [])]) or r"(?!)"
        return re.compile(
            f"(?P<guideline>{_GUIDELINES.pattern})|(?P<drug>(?i:{drugs}))|(?P<word>(?i:{_CONNECTIVES.pattern}))"
        )

    def annotate(self, sentence: str) -> str:
        return self._pattern.sub(self._replace, sentence)

    def _replace(self, match: re.Match[str]) -> str:
        text = match[0]
        if match["word"]:
            return f"**{text}**"
        address = self.drugs.get(text) or self.drugs.get(text.lower()) if match["drug"] else None
        return f"[{text}]({address or _GUIDELINE_SEARCH.format(quote(text.strip('《》')))})"


class SentenceBuffer:
    """Gives whole sentences of a growing text, each by itself; `end` gives the rest."""

    def __init__(self) -> None:
        self._text = ""

    def feed(self, text: str) -> list[str]:
        self._text += text
        sentences, begin = [], 0
        for mark in SENTENCE_END.finditer(self._text):
            # A mark at the very end may go on ("。。", "\n\n"): it waits for the next character.
            if mark.end() < len(self._text):
                sentences.append(self._text[begin : mark.end()])
                begin = mark.end()
        self._text = self._text[begin:]
        return sentences

    def end(self) -> str:
        rest, self._text = self._text, ""
        return rest
