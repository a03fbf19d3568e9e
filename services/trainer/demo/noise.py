"""Other ways to type the same question: politeness, lost punctuation, lost small words, typing errors.

Nothing here knows what a question means; the key words survive because each change is small and rare.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from services.trainer.demo.dialogues import Lang
from services.trainer.demo.keywords import join_units, units

_PHRASES = Path(__file__).resolve().parent / "phrases.json"
_PUNCTUATION = re.compile(r"[，。！？：；、,.!?:;（）()]")
_HALF_WIDTH = str.maketrans("，。！？：；（）", ",.!?:;()")


class Phrases(BaseModel):
    """What people put around a question, the words they swap for one another, and those that they leave out."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    before: tuple[str, ...]
    after: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    small_words: frozenset[str]


@cache
def phrases(lang: Lang) -> Phrases:
    return Phrases.model_validate(json.loads(_PHRASES.read_text(encoding="utf-8"))[lang])


def vary(question: str, lang: Lang, rng: random.Random) -> str:
    """A variant of `question`; the same one a quarter of the time. Deterministic by the state of `rng`."""
    if rng.random() < 0.25:
        return question
    changes: list[tuple[float, Callable[[str, Lang, random.Random], str]]] = [
        (0.35, _swap_synonyms), (0.15, _shuffle_clauses), (0.35, _drop_small_words), (0.25, _drop_anything),
        (0.05, _mistype), (0.45, _change_punctuation), (0.35, _add_politeness), (0.15, _change_width),
    ]  # fmt: skip
    text = question
    for probability, change in changes:
        if rng.random() < probability:
            text = change(text, lang, rng)
    return text.strip() or question


def join_questions(first: str, second: str, lang: Lang, rng: random.Random) -> str:
    """Two phrasings of one question as one message."""
    if lang == "zh":
        return first.rstrip("。？！，") + rng.choice(("，", "？", "。", " ")) + second
    return first.rstrip(".?!,") + rng.choice((". ", "? ", ", ")) + second


def _swap_synonyms(text: str, lang: Lang, rng: random.Random) -> str:
    for group in phrases(lang).synonyms:
        for word in sorted(group, key=len, reverse=True):
            pattern = re.escape(word) if lang == "zh" else rf"\b{re.escape(word)}\b"
            if rng.random() < 0.6 and re.search(pattern, text, re.IGNORECASE):
                other = rng.choice(group)
                text = re.sub(pattern, other, text, count=1, flags=re.IGNORECASE)
                break
    return text


def _shuffle_clauses(text: str, lang: Lang, rng: random.Random) -> str:
    mark = "，" if lang == "zh" else ", "
    clauses = [c.strip() for c in re.split(r"[，。；？！]|[,.;?!]\s", text) if c.strip()]
    rng.shuffle(clauses)
    return mark.join(clauses)


def _drop_small_words(text: str, lang: Lang, rng: random.Random) -> str:
    small = phrases(lang).small_words
    return join_units([w for w in units(text, lang) if w.lower() not in small or rng.random() > 0.4], lang)


def _drop_anything(text: str, lang: Lang, rng: random.Random) -> str:
    words = units(text, lang)
    return join_units([w for w in words if rng.random() > 0.08], lang) if len(words) > 6 else text


def _mistype(text: str, lang: Lang, rng: random.Random) -> str:
    characters = list(text)
    if len(characters) > 6:
        i = rng.randrange(len(characters) - 1)
        characters[i], characters[i + 1] = characters[i + 1], characters[i]
    return "".join(characters)


def _change_punctuation(text: str, lang: Lang, rng: random.Random) -> str:
    kind = rng.randrange(4)
    if kind == 0:
        return _PUNCTUATION.sub("" if lang == "en" else " ", text).strip()
    if kind == 1:
        return _PUNCTUATION.sub(lambda m: m[0] if rng.random() < 0.5 else "", text)
    bare = text.rstrip("。？！?.!")
    if kind == 2:
        return bare
    return bare + rng.choice("？。！" if lang == "zh" else "?.!")


def _add_politeness(text: str, lang: Lang, rng: random.Random) -> str:
    if rng.random() < 0.7:
        text = rng.choice(phrases(lang).before) + text
    if rng.random() < 0.4:
        text = text.rstrip("。？！.?!") + rng.choice(phrases(lang).after)
    return text


def _change_width(text: str, lang: Lang, rng: random.Random) -> str:
    if lang == "zh":
        return text.translate(_HALF_WIDTH)
    return text.lower() if rng.random() < 0.8 else text.upper()
