"""What a comparison can say: change, interval, test, and what it could have shown. The unit is the scenario.

Differences are adapter minus base in points of the 1-5 scale. Arrays are scenarios x raters; NaN is a rating that is not
there. Scenarios count the same however many raters and seeds they had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
DRAWS, SEED = 10_000, 20260
LEVEL = 0.05
POWER = 0.80
# Below six scenarios not even the exact test can reach 0.05 (2 / 2^5 = 0.0625): an interval would claim more than it.
LEAST_SCENARIOS, LEAST_RATERS = 6, 2
WILCOXON_EFFICIENCY = 3 / math.pi  # against the t-test on normal differences (Hodges and Lehmann 1956)
_DECIMALS = 9  # means of small integers: what differs later is rounding, and would hide ties


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; `None` where there is too little to make one."""

    mean: float
    low: float | None
    high: float | None


def scenario_means(values: Array) -> Array:
    """Mean over the raters of each scenario."""
    there = ~np.isnan(values)
    sums = np.where(there, values, 0.0).sum(axis=1)
    means: Array = np.round(sums / np.maximum(there.sum(axis=1), 1), _DECIMALS)
    return means


def two_way_bootstrap(differences: Array, draws: int = DRAWS, seed: int = SEED) -> Interval:
    """Percentile interval of the mean, scenarios and raters drawn anew and independently of each other.

    With both drawn the interval covers other scenarios and other raters, and errs on the wide side (Owen 2007, Annals of
    Applied Statistics 1(2), "The pigeonhole bootstrap").
    """
    scenarios, raters = differences.shape
    mean = float(scenario_means(differences).mean())
    if scenarios < LEAST_SCENARIOS or raters < LEAST_RATERS:
        return Interval(mean, None, None)
    dice = np.random.default_rng(seed)
    drawn = dice.multinomial(scenarios, np.full(scenarios, 1 / scenarios), size=draws).astype(np.float64)
    judges = dice.multinomial(raters, np.full(raters, 1 / raters), size=draws).astype(np.float64)
    there = ~np.isnan(differences)
    sums = judges @ np.where(there, differences, 0.0).T
    counts = judges @ there.T.astype(np.float64)
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    weights = drawn * (counts > 0)  # a scenario that none of the drawn raters has rated
    totals = weights.sum(axis=1)
    sample = ((weights * means).sum(axis=1))[totals > 0] / totals[totals > 0]
    low, high = np.percentile(sample, [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)])
    return Interval(mean, float(low), float(high))


def signed_rank(differences: Array) -> tuple[float, str]:
    """p, two-sided, of Wilcoxon's signed-rank test of no change, and how it was made. Exact with ties and zeros too.

    Tables know neither: with them all 2^n signs are counted instead, zeros ranked and then left out as Pratt (1959) does.
    """
    from scipy.stats import rankdata, wilcoxon  # type: ignore[import-untyped]

    rounded = np.round(differences, _DECIMALS)
    if not rounded.any():
        return 1.0, "no scenario differs"
    sizes = np.abs(rounded)
    if sizes.all() and len(np.unique(sizes)) == len(sizes):
        return float(wilcoxon(rounded, method="exact").pvalue), "exact"
    doubled = np.rint(2 * rankdata(sizes)).astype(int)  # ranks of ties are halves
    return _sign_flips(doubled[sizes > 0], rounded[sizes > 0] > 0), "exact, with ties or zeros"


def _sign_flips(ranks: npt.NDArray[np.int_], is_positive: npt.NDArray[np.bool_]) -> float:
    """Share of all signs whose positive ranks sum as far from the middle as these; the sums' distribution rank by rank."""
    chances = np.zeros(int(ranks.sum()) + 1)
    chances[0] = 1.0
    for rank in ranks:
        moved = np.zeros_like(chances)
        moved[rank:] = chances[:-rank]
        chances = (chances + moved) / 2
    found = int(ranks[is_positive].sum())
    tail = min(chances[: found + 1].sum(), chances[found:].sum())
    return float(min(1.0, 2 * tail))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted for looking at several (Holm 1979): the k-th smallest times what is left, never falling, at most 1."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def wins(differences: Array) -> dict[str, int]:
    """Scenarios in which the adapter was better, equal, worse."""
    rounded = np.round(differences, _DECIMALS)
    return {"win": int((rounded > 0).sum()), "tie": int((rounded == 0).sum()), "loss": int((rounded < 0).sum())}


def cliffs_delta(before: Array, after: Array) -> float:
    """P(after > before) - P(after < before) over all pairs of scenarios, -1 to 1 (Cliff 1993). It ignores the pairing."""
    signs = np.sign(np.round(after[:, None] - before[None, :], _DECIMALS))
    return float(signs.mean())


def power_note(differences: Array, tests: int) -> dict[str, Any]:
    """The smallest change that so many scenarios show with 80 % at 5 % shared by `tests`; from the spread that was found.

    The t-test's formula with Wilcoxon's efficiency; `None` for too few scenarios, or when nothing varied.
    """
    from scipy.stats import t

    count = len(differences)
    least_p = 2.0 ** (1 - count)
    level = LEVEL / tests
    found: dict[str, Any] = {"level": level, "smallest_p": least_p, "spread": None, "detectable": None}
    if count < 2:
        return found
    spread = float(np.std(differences, ddof=1))
    found["spread"] = spread
    if least_p <= level and spread > 0:
        quantiles = float(t.ppf(1 - level / 2, count - 1) + t.ppf(POWER, count - 1))
        found["detectable"] = quantiles * spread / math.sqrt(count * WILCOXON_EFFICIENCY)
    return found


def share(successes: int, trials: int) -> dict[str, Any]:
    """A share with its exact 95 % interval (Clopper and Pearson 1934) and p against one half; `None` without a trial."""
    from scipy.stats import binomtest

    if not trials:
        return {"share": None, "low": None, "high": None, "p": None}
    test = binomtest(successes, trials, 0.5)
    interval = test.proportion_ci(method="exact")
    return {
        "share": successes / trials,
        "low": float(interval.low),
        "high": float(interval.high),
        "p": float(test.pvalue),
    }
