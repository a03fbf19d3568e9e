"""Rows to batches of few fixed shapes, as arrays: a GPU can record the work for a shape once and repeat it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.trainer.demo.recipe import Recipe
from services.trainer.encode import IGNORED, Row

WIDTHS = (64, 96, 128, 160, 192, 224, 256, 320, 416, 576, 832, 1216, 1792)


@dataclass(frozen=True)
class Batch:
    """Arrays of one shape, (rows, width): what is read, what should be said next, and how much each token counts.

    A row stands at the left; what is right of it, and whole rows that only fill the shape, count nothing.
    """

    ids: Any
    labels: Any
    weights: Any


def make_batches(rows: Sequence[Row], recipe: Recipe, rng: random.Random) -> list[Batch]:
    """Every row once, rows of like length together, in random order; `recipe.batch_tokens` to a batch.

    Raises `ValueError` for a row that is longer than the widest shape.
    """
    waiting = sorted(rng.sample(rows, len(rows)), key=lambda row: len(row.ids))  # equal lengths stay shuffled
    if waiting and len(waiting[-1].ids) > WIDTHS[-1]:
        raise ValueError(f"a row of {len(waiting[-1].ids)} tokens; the longest may have {WIDTHS[-1]}")
    batches: list[Batch] = []
    fitting: list[Row] = []
    for width in WIDTHS:
        # Shorter rows that did not fill a batch of their own wait in `fitting`, and go along with wider ones.
        height = max(1, recipe.batch_tokens // width)
        while waiting and len(waiting[0].ids) <= width:
            fitting.append(waiting.pop(0))
        rng.shuffle(fitting)
        while len(fitting) >= height or (fitting and not waiting):
            batches.append(_batch(fitting[:height], height, width, recipe))
            fitting = fitting[height:]
    rng.shuffle(batches)
    return batches


def _batch(rows: Sequence[Row], height: int, width: int, recipe: Recipe) -> Batch:
    ids = np.zeros((height, width), dtype=np.int32)
    labels = np.zeros((height, width), dtype=np.int32)
    weights = np.zeros((height, width), dtype=np.float32)
    for i, row in enumerate(rows):
        length = len(row.ids)
        ids[i, :length] = row.ids
        labels[i, : length - 1] = row.labels[1:]  # each position is asked for the token after it
    learned = labels != IGNORED
    labels[~learned] = 0
    for i, row in enumerate(rows):
        learned[i, len(row.ids) - 1 :] = False
    learned[len(rows) :] = False
    begins = learned.cumsum(axis=1) <= recipe.beginning
    weights[learned] = np.where(begins, recipe.beginning_weight, 1.0)[learned]
    return Batch(ids, labels, weights)
