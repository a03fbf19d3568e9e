"""The rows that every recipe trains on: lengths from a seeded mix, ids at random. Needs no torch.

The article's corpus is not shipped with this repository. Its published sample has about 900 tokens of thought and 220 of answer,
so the mix is log-normal around a mean of 1,170 tokens with the prompt, cut to 300 .. 2048. What is inside a row changes
neither time nor memory; its length and how much of it is learned do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from services.trainer.encode import IGNORED

LEAST, MOST = 300, 2048
MEAN, SPREAD = 1170.0, 0.45  # of the logarithm
PROMPT = 60  # tokens that are not learned: system prompt, question, and the marks of the turns
ANSWER_SHARE = 0.2


@dataclass(frozen=True)
class PlainRow:
    """`ids`, of which the first `prompt` are not learned; the answer begins at `answer`."""

    ids: list[int]
    prompt: int
    answer: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * self.prompt + self.ids[self.prompt :]


def mixed_lengths(rows: int, most: int = MOST, seed: int = 0) -> list[int]:
    """Of the mix, scaled where the longest row is not 2048; drawn again where out of bounds."""
    rng = random.Random(seed)
    middle = math.log(MEAN) - SPREAD**2 / 2
    lengths: list[int] = []
    while len(lengths) < rows:
        length = rng.lognormvariate(middle, SPREAD)
        if LEAST <= length <= MOST:
            lengths.append(max(8, round(length * most / MOST)))
    return lengths


def make_rows(lengths: Sequence[int], ids_below: int, seed: int = 0) -> list[PlainRow]:
    rng = random.Random(f"{seed} ids")
    rows = []
    for length in lengths:
        prompt = min(PROMPT, length // 4)
        answer = length - max(1, round(ANSWER_SHARE * (length - prompt)))
        rows.append(PlainRow([rng.randrange(1, ids_below) for _ in range(length)], prompt, answer))
    return rows
