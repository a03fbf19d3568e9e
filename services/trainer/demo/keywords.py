"""Which words of a question tell its dialogue from the others, so that the other words can be thinned out or added to.

A model of this size otherwise learns whole sentences: it then answers the question that shares the most small words.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from services.trainer.demo.dialogues import Dialogue, Lang

LONGEST = {"zh": 3, "en": 2}  # units of a term: characters in Chinese, words in English
AGREEING = 3  # phrasings of a dialogue, of seven, that must share a term for it to be one of its key words
TOO_COMMON = 0.06  # share of the dialogues in a language; a term that more of them have is nobody's key word


def units(text: str, lang: Lang) -> list[str]:
    """Characters of Chinese, with numbers and Latin words whole; words of English with what is stuck to them."""
    return re.findall(r"[A-Za-z0-9.]+|.", text) if lang == "zh" else text.split()


def join_units(parts: Iterable[str], lang: Lang) -> str:
    return ("" if lang == "zh" else " ").join(parts)


class Keywords:
    """Knows the key words of every dialogue, and words that many dialogues share."""

    def __init__(self, dialogues: Sequence[Dialogue]) -> None:
        shared: dict[Lang, Counter[str]] = {"zh": Counter(), "en": Counter()}
        count = Counter(dialogue.lang for dialogue in dialogues)
        own: dict[str, Counter[str]] = {}
        for dialogue in dialogues:
            agreeing = Counter(t for q in dialogue.training_questions for t in set(_terms(q, dialogue.lang)))
            own[dialogue.id] = agreeing
            shared[dialogue.lang].update(agreeing.keys())
        self._keys = {
            d.id: {
                term
                for term, agreeing in own[d.id].items()
                if agreeing >= AGREEING and shared[d.lang][term] <= TOO_COMMON * count[d.lang]
            }
            for d in dialogues
        }
        taken = {key for keys in self._keys.values() for key in keys}
        self.fillers = {lang: _fillers(shared[lang], taken, lang) for lang in shared}

    def of(self, dialogue: Dialogue) -> set[str]:
        return self._keys[dialogue.id]

    def thin(self, question: str, dialogue: Dialogue, rng: random.Random) -> str:
        """The question without some of the words that are no key words; as it is when it has no key word."""
        parts = units(question, dialogue.lang)
        kept = self._protected(parts, dialogue)
        if not any(kept):
            return question
        share = rng.choice((0.2, 0.4, 0.7, 1.0))
        dropping, thinned = False, []
        for part, keep in zip(parts, kept, strict=True):
            if rng.random() < 0.5:  # neighbours share their lot, so that whole words go
                dropping = rng.random() < share
            if keep or not dropping:
                thinned.append(part)
        return join_units(thinned, dialogue.lang)

    def pad(self, question: str, lang: Lang, rng: random.Random) -> str:
        """The question with one to three terms put in that many dialogues share."""
        parts = units(question, lang)
        fillers, weights = self.fillers[lang]
        for term in rng.choices(fillers, weights, k=rng.randint(1, 3)):
            borders = [0, len(parts), *(i + 1 for i, part in enumerate(parts) if not part[-1].isalnum())]
            parts.insert(rng.choice(borders), term)
        return join_units(parts, lang)

    def _protected(self, parts: list[str], dialogue: Dialogue) -> list[bool]:
        keys, lang = self.of(dialogue), dialogue.lang
        kept = [False] * len(parts)
        bare = [_bare(part) for part in parts]
        for length in range(1, LONGEST[lang] + 1):
            for i in range(len(parts) - length + 1):
                if join_units(bare[i : i + length], lang) in keys:
                    kept[i : i + length] = [True] * length
        return kept


def _bare(unit: str) -> str:
    return "".join(c for c in unit.lower() if c.isalnum() or c == ".").rstrip(".")


def _terms(question: str, lang: Lang) -> Iterable[str]:
    bare = [_bare(unit) for unit in units(question, lang)]
    for length in range(1, LONGEST[lang] + 1):
        for i in range(len(bare) - length + 1):
            if all(bare[i : i + length]):
                yield join_units(bare[i : i + length], lang)


def _fillers(shared: Counter[str], taken: set[str], lang: Lang) -> tuple[list[str], list[int]]:
    """Terms that four or more dialogues have and none has for a key word, with how many have them."""
    least = 2 if lang == "zh" else 1  # one Chinese character is seldom a word
    common = sorted((t, n) for t, n in shared.items() if n >= 4 and t not in taken and len(units(t, lang)) >= least)
    return [term for term, _ in common], [n for _, n in common]
