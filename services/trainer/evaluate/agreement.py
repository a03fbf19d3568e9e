"""How far raters agree: with each other (Krippendorff's alpha, ICC), and with themselves (repeats)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from services.trainer.evaluate.sheets import DIMENSIONS, SideRating

Array = npt.NDArray[np.float64]
LEVELS = 5
RELIABLE = 0.667  # below it not even tentative conclusions (Krippendorff 2004, Content Analysis, chapter 11)
DRAWS, SEED = 10_000, 20260


def coincidences(counts: Array) -> Array:
    """Units x levels of how many raters gave each level, to units x levels x levels of pairable values.

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", step 2. A unit with one rating pairs with nothing.
    """
    raters = counts.sum(axis=1)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1])
    weights = np.divide(1.0, raters - 1, out=np.zeros_like(raters), where=raters > 1)
    found: Array = pairs * weights[:, None, None]
    return found


def ordinal_alpha(matrix: Array) -> Array:
    """Alpha with the ordinal distance of each coincidence matrix (... x levels x levels); NaN where nothing varies."""
    totals = matrix.sum(axis=-1)
    up_to = np.cumsum(totals, axis=-1)
    # Values from c to k, both ends half: up_to[k] - up_to[c] + totals[c] - (totals[c] + totals[k]) / 2, for c <= k.
    middle = up_to - totals / 2
    distances = (middle[..., :, None] - middle[..., None, :]) ** 2
    observed = (matrix * distances).sum(axis=(-1, -2))
    expected = (totals[..., :, None] * totals[..., None, :] * distances).sum(axis=(-1, -2))
    count = totals.sum(axis=-1)
    found: Array = 1 - np.divide(
        (count - 1) * observed, expected, out=np.full_like(expected, np.nan), where=expected > 0
    )
    return found


def alpha(units: Sequence[tuple[str, Sequence[int]]], draws: int = DRAWS, seed: int = SEED) -> dict[str, Any]:
    """Of (scenario, ratings 1-5 of one answer by different raters). The interval draws scenarios anew, whole.

    `None` where fewer than two raters rated the same answers, or all gave one value.
    """
    counts = np.array([np.bincount(ratings, minlength=LEVELS + 1)[1:] for _, ratings in units], dtype=np.float64)
    none: dict[str, Any] = {"value": None, "low": None, "high": None, "reliable": None}
    if not len(counts) or counts.sum(axis=1).max() < 2:
        return none
    scenarios = sorted({scenario for scenario, _ in units})
    by_unit = coincidences(counts)
    by_scenario = np.stack([by_unit[[s == scenario for s, _ in units]].sum(axis=0) for scenario in scenarios])
    value = float(ordinal_alpha(by_scenario.sum(axis=0)))
    if np.isnan(value):
        return none
    found = {"value": value, "low": None, "high": None, "reliable": value >= RELIABLE}
    if len(scenarios) > 1:
        dice = np.random.default_rng(seed)
        drawn = dice.multinomial(len(scenarios), np.full(len(scenarios), 1 / len(scenarios)), size=draws)
        sample = ordinal_alpha(np.tensordot(drawn.astype(np.float64), by_scenario, axes=1))
        sample = sample[~np.isnan(sample)]
        if len(sample):
            found["low"], found["high"] = (float(v) for v in np.percentile(sample, [2.5, 97.5]))
    return found


def icc(table: Array) -> dict[str, Any]:
    """ICC(2,1) and ICC(2,k), absolute agreement, of answers x raters without gaps; `None` where nothing varies.

    Two-way random effects: Shrout and Fleiss 1979, Psychological Bulletin 86(2); McGraw and Wong 1996, table 4.
    """
    answers, raters = table.shape
    found: dict[str, Any] = {"single": None, "average": None, "answers": answers, "raters": raters}
    if answers < 2 or raters < 2:
        return found
    mean = table.mean()
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    between = raters * float(((rows - mean) ** 2).sum()) / (answers - 1)
    judges = answers * float(((columns - mean) ** 2).sum()) / (raters - 1)
    rest = table - rows[:, None] - columns[None, :] + mean
    error = float((rest**2).sum()) / ((answers - 1) * (raters - 1))
    single = between + (raters - 1) * error + raters * (judges - error) / answers
    average = between + (judges - error) / answers
    if single > 1e-12 and average > 1e-12:
        found |= {"single": (between - error) / single, "average": (between - error) / average}
    return found


def intra_rater(pairs: Iterable[tuple[str, SideRating, SideRating]]) -> dict[str, Any]:
    """Of (rater, first rating, rating of the same answer again): how often the same, and within a point."""
    steps: dict[str, list[int]] = {}
    for rater, first, again in pairs:
        for name in DIMENSIONS:
            steps.setdefault(rater, []).append(abs(getattr(first, name) - getattr(again, name)))
    return {"all": _repeated([s for own in steps.values() for s in own])} | {
        "raters": {rater: _repeated(own) for rater, own in sorted(steps.items())}
    }


def _repeated(steps: Sequence[int]) -> dict[str, Any]:
    if not steps:
        return {"ratings": 0, "same": None, "within_one": None}
    return {
        "ratings": len(steps),
        "same": sum(step == 0 for step in steps) / len(steps),
        "within_one": sum(step <= 1 for step in steps) / len(steps),
    }
