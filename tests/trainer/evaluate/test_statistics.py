"""The figures against published values, against each other, and against what must hold whatever the data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from services.trainer.evaluate.agreement import LEVELS, alpha, coincidences, icc, intra_rater, ordinal_alpha
from services.trainer.evaluate.sheets import SideRating
from services.trainer.evaluate.statistics import (
    cliffs_delta,
    holm,
    power_note,
    scenario_means,
    share,
    signed_rank,
    two_way_bootstrap,
    wins,
)

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", part C: 12 units by 4 observers, with gaps.
UNITS = ["111", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", "555", "11", "3"]
# Shrout and Fleiss 1979, table 2: 6 targets by 4 judges; their table 4 has the coefficients.
TARGETS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


def test_alpha_is_krippendorffs() -> None:
    found = alpha([(str(n), [int(v) for v in unit]) for n, unit in enumerate(UNITS)])
    assert round(found["value"], 3) == 0.815
    assert found["low"] < found["value"] < found["high"]
    assert found["reliable"]


@given(st.lists(st.lists(st.integers(1, 5), min_size=2, max_size=5), min_size=2, max_size=12))
def test_alpha_is_the_definition_pair_by_pair(units: list[list[int]]) -> None:
    counts = np.array([np.bincount(unit, minlength=LEVELS + 1)[1:] for unit in units], dtype=float)
    values = [value for unit in units for value in unit]

    def distance(a: int, b: int) -> float:
        low, high = min(a, b), max(a, b)
        return float((sum(low <= v <= high for v in values) - (values.count(a) + values.count(b)) / 2) ** 2)

    expected = sum(distance(a, b) for a, b in itertools.permutations(values, 2)) / (len(values) - 1)
    found = float(ordinal_alpha(coincidences(counts).sum(axis=0)))
    if expected == 0:
        assert np.isnan(found)
        return
    observed = sum(sum(distance(a, b) for a, b in itertools.permutations(u, 2)) / (len(u) - 1) for u in units)
    assert found == pytest.approx(1 - observed / expected)


def test_icc_is_shrouts_and_fleisss() -> None:
    found = icc(np.array(TARGETS, dtype=float))
    assert (round(found["single"], 2), round(found["average"], 2)) == (0.29, 0.62)


def test_agreement_that_cannot_be_computed_is_none() -> None:
    assert alpha([("t1", [3]), ("t2", [4])])["value"] is None
    assert alpha([("t1", [3, 3]), ("t2", [3, 3])])["value"] is None
    assert icc(np.full((4, 3), 2.0))["single"] is None
    assert icc(np.empty((0, 3)))["single"] is None
    assert intra_rater([])["all"]["same"] is None


def test_repeats_are_compared_dimension_by_dimension() -> None:
    first = SideRating(logic=3, accuracy=3, risk=3, readability=3)
    again = SideRating(logic=3, accuracy=4, risk=5, readability=3)
    assert intra_rater([("R1", first, again)])["raters"]["R1"] == {"ratings": 4, "same": 0.5, "within_one": 0.75}


def test_ten_scenarios_reach_the_smallest_exact_p() -> None:
    p, how = signed_rank(np.arange(1, 11) / 7)
    assert (p, how) == (pytest.approx(2 / 2**10), "exact")


@settings(max_examples=25)
@given(st.lists(st.integers(-4, 4), min_size=3, max_size=9).filter(any))
def test_with_ties_and_zeros_every_sign_is_flipped(steps: list[int]) -> None:
    differences = np.array(steps) / 5
    p, how = signed_rank(differences)
    sizes = np.abs(steps)
    if 0 not in sizes and len(set(sizes)) == len(sizes):
        assert p == pytest.approx(wilcoxon(differences, method="exact").pvalue)
        return
    # Pratt: all are ranked, zeros too, and zeros then leave; the definition by enumeration.
    ranks = np.array([(sizes < s).sum() + ((sizes == s).sum() + 1) / 2 for s in sizes])[sizes > 0]
    signs = np.sign(steps)[sizes > 0]
    sums = [float((ranks * flip).sum()) for flip in itertools.product((-1, 1), repeat=len(ranks))]
    observed = abs(float((ranks * signs).sum()))
    assert p == pytest.approx(sum(abs(s) >= observed - 1e-9 for s in sums) / len(sums))
    assert how == "exact, with ties or zeros"


def test_no_difference_at_all_is_p_one() -> None:
    assert signed_rank(np.zeros(8))[0] == 1.0


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=6))
def test_holm_never_lowers_a_p_and_keeps_the_order(p_values: dict[str, float]) -> None:
    found = holm(p_values)
    assert list(found) == list(p_values)
    assert all(p_values[n] <= found[n] <= 1 for n in p_values)
    assert min(found.values()) == pytest.approx(min(1.0, len(p_values) * min(p_values.values())))
    ranked = sorted(p_values, key=lambda n: p_values[n])
    assert [found[n] for n in ranked] == sorted(found.values())


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_the_interval_holds_the_mean_and_is_the_same_again() -> None:
    differences = np.random.default_rng(1).normal(0.4, 1, (20, 5))
    found = two_way_bootstrap(differences)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.mean < found.high
    assert found == two_way_bootstrap(differences)


def test_raters_who_disagree_widen_the_interval() -> None:
    """An interval over scenarios alone would be zero wide here."""
    differences = np.tile([1.0, 0.0, 0.0, -1.0], (10, 1))
    found = two_way_bootstrap(differences)
    assert found.low is not None
    assert found.low < -0.2


def test_missing_ratings_leave_the_others_as_they_are() -> None:
    differences = np.random.default_rng(2).normal(0, 1, (12, 4))
    gone = np.column_stack([differences, np.full(12, np.nan)])
    assert scenario_means(gone) == pytest.approx(scenario_means(differences), abs=1e-9)
    assert two_way_bootstrap(gone).low is not None


@pytest.mark.parametrize("shape", [(5, 5), (1, 1), (12, 1)])
def test_too_little_makes_no_interval(shape: tuple[int, int]) -> None:
    found = two_way_bootstrap(np.ones(shape))
    assert (found.low, found.high) == (None, None)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Scenario, rater and noise effects around 0.3; the two-way bootstrap errs on the wide side."""
    dice = np.random.default_rng(3)
    inside = 0
    for _ in range(150):
        differences = 0.3 + dice.normal(0, 0.8, (30, 1)) + dice.normal(0, 0.1, (1, 5)) + dice.normal(0, 0.5, (30, 5))
        found = two_way_bootstrap(differences, draws=800)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0.3 <= found.high
    assert inside / 150 >= 0.88


def test_the_smallest_change_is_seen_about_as_often_as_said() -> None:
    dice = np.random.default_rng(4)
    spread, count = 0.8, 30
    noise = dice.normal(0, 1, count)
    scaled = (noise - noise.mean()) / noise.std(ddof=1) * spread
    change = power_note(scaled, 4)["detectable"]
    seen = sum(wilcoxon(dice.normal(change, spread, count), method="exact").pvalue < 0.0125 for _ in range(400))
    assert 0.72 <= seen / 400 <= 0.9


def test_too_few_scenarios_can_show_nothing() -> None:
    found = power_note(np.array([0.1, 0.5, 0.2, 0.9, 1.0, 0.3]), 4)
    assert found["smallest_p"] == pytest.approx(0.03125)
    assert found["detectable"] is None


def test_wins_and_cliffs_delta() -> None:
    assert wins(np.array([0.5, 0.0, -0.1, 1e-12])) == {"win": 1, "tie": 2, "loss": 1}
    assert cliffs_delta(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1.0
    assert cliffs_delta(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.0


def test_a_share_has_an_exact_interval() -> None:
    found = share(7, 10)
    assert (round(found["low"], 4), round(found["high"], 4)) == (0.3475, 0.9333)
    assert share(0, 0)["share"] is None
