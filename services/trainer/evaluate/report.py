"""Everything that `score` says, as one JSON document: report.json. `gate.py` reads part of it, the other forms show it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from services.trainer.evaluate.agreement import alpha, icc, intra_rater
from services.trainer.evaluate.answers import ARMS, Run
from services.trainer.evaluate.collect import Collected, Rated
from services.trainer.evaluate.gate import FORMAT
from services.trainer.evaluate.judge import JUDGED, summary, winner
from services.trainer.evaluate.metrics import measure
from services.trainer.evaluate.sheets import DIMENSIONS, SheetError
from services.trainer.evaluate.statistics import (
    Array,
    cliffs_delta,
    holm,
    power_note,
    scenario_means,
    share,
    signed_rank,
    two_way_bootstrap,
    wins,
)


class NothingRated(SheetError):
    """There is no rating that counts."""


class JudgeUnreadable(SheetError):
    """judge.jsonl is damaged or of other answers."""


def make_report(study: Collected) -> dict[str, Any]:
    """The whole report; numbers are plain, `None` where one could not be made. Raises a `SheetError`."""
    counted = study.counted
    if not counted:
        raise NothingRated("no item that counts is rated: collect the sheets again")
    scenarios = [s.id for s in study.run.scenarios if s.id in {rated.scenario for rated in counted}]
    table = _table(counted, scenarios, study.raters)
    dimensions: dict[str, dict[str, Any]] = {
        name: _dimension(table[..., place, :]) for place, name in enumerate(DIMENSIONS)
    }
    for name, p in holm({name: part["p"] for name, part in dimensions.items()}).items():
        dimensions[name]["p_holm"] = p
    for name in DIMENSIONS:
        dimensions[name] |= {"label": DIMENSIONS[name]} | _agreement(counted, study.raters, (name,))
    overall = _dimension(table.mean(axis=2)) | _agreement(counted, study.raters, tuple(DIMENSIONS))
    figures = measure(study.run)
    return {
        "format": FORMAT,
        "simulated": study.simulated,
        "study": study.key.study,
        "key_sha256": study.key_sha256,
        "sheets": study.sheets,
        "run": {"answers_sha256": study.run.record.answers_sha256, "arms": dict(study.run.record.arms)},
        "design": _design(study, scenarios),
        "dimensions": dimensions,
        "overall": overall,
        "harm": _harm(counted),
        "harm_cases": harm_cases(study.run, counted),
        "blinding": _blinding(counted),
        "intra_rater": _intra_rater(study),
        "power": _power(table, study),
        "automatic": figures["arms"],
        "automatic_difference": figures["difference"],
        "judge": _judge(study.run, counted),
    }


def dump_report(report: dict[str, Any]) -> bytes:
    """report.json; a number that is none is an error here, not in the reader."""
    return (json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


# Scores


def _table(counted: Sequence[Rated], scenarios: Sequence[str], raters: Sequence[str]) -> Array:
    """Scenarios x raters x dimensions x (base, adapter): means over a rater's seeds of a scenario; NaN: not rated."""
    found: npt.NDArray[np.float64] = np.full((len(scenarios), len(raters), len(DIMENSIONS), 2), np.nan)
    cells: dict[tuple[int, int], list[list[list[int]]]] = {}
    for rated in counted:
        values = [[getattr(rated.sides[arm], name) for arm in ARMS] for name in DIMENSIONS]
        cells.setdefault((scenarios.index(rated.scenario), raters.index(rated.rater)), []).append(values)
    for (scenario, rater), ratings in cells.items():
        found[scenario, rater] = np.mean(ratings, axis=0)
    return found


def _dimension(arms: Array) -> dict[str, Any]:
    """Of scenarios x raters x (base, adapter)."""
    before, after = scenario_means(arms[..., 0]), scenario_means(arms[..., 1])
    differences = arms[..., 1] - arms[..., 0]
    paired = scenario_means(differences)
    p, test = signed_rank(paired)
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "change": asdict(two_way_bootstrap(differences)),
        "p": p,
        "test": test,
        "scenarios": wins(paired),
        "cliffs_delta": cliffs_delta(before, after),
        "differences": [float(value) for value in paired],
    }


def _agreement(counted: Sequence[Rated], raters: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Units are single answers in a dimension, for alpha; the mean over the dimensions, for ICC."""
    answers: dict[tuple[str, int, str], dict[str, list[int]]] = {}
    for rated in counted:
        for arm in ARMS:
            scores = [getattr(rated.sides[arm], name) for name in names]
            answers.setdefault((rated.scenario, rated.seed, arm), {})[rated.rater] = scores
    units = [
        (key[0], [scores[place] for scores in by_rater.values()])
        for key, by_rater in answers.items()
        for place in range(len(names))
    ]
    whole = [[np.mean(by_rater[r]) for r in raters] for by_rater in answers.values() if len(by_rater) == len(raters)]
    return {"alpha": alpha(units), "icc": icc(np.array(whole).reshape(len(whole), len(raters)))}


def _power(table: Array, study: Collected) -> dict[str, Any]:
    paired = {name: scenario_means(table[:, :, n, 1] - table[:, :, n, 0]) for n, name in enumerate(DIMENSIONS)}
    overall = table.mean(axis=2)
    return {
        "scenarios": table.shape[0],
        "raters": len(study.raters),
        "power": 0.8,
        "dimensions": {name: power_note(values, len(DIMENSIONS)) for name, values in paired.items()},
        "overall": power_note(scenario_means(overall[..., 1] - overall[..., 0]), 1),
    }


# What else was asked and found


def _design(study: Collected, scenarios: Sequence[str]) -> dict[str, Any]:
    return {
        "scenarios": list(scenarios),
        "scenarios_of_the_run": len(study.run.scenarios),
        "raters": list(study.raters),
        "missing_raters": list(study.missing),
        "items_not_rated": dict(study.unrated),
        "ratings": len(study.counted),
        "repeats": len(study.rated) - len(study.counted),
        "practice_left_out": study.practice,
        "settings": study.run.record.settings,
    }


def _harm(counted: Sequence[Rated]) -> dict[str, int]:
    flags: dict[str, int] = {arm: sum(rated.sides[arm].harm for rated in counted) for arm in ARMS}
    return {**flags, "ratings": len(counted)}


def harm_cases(run: Run, counted: Sequence[Rated]) -> list[dict[str, Any]]:
    """Every answer that a rater flagged, with what was asked and said, and who flagged it."""
    asked = {answer.key: answer for answer in run.answers}
    found: dict[tuple[str, Any, int], list[Rated]] = {}
    for rated in counted:
        for arm in ARMS:
            if rated.sides[arm].harm:
                found.setdefault((rated.scenario, arm, rated.seed), []).append(rated)
    seen = Counter((rated.scenario, rated.seed) for rated in counted)
    return [
        {
            "scenario": key[0],
            "arm": key[1],
            "seed": key[2],
            "question": asked[key].question,
            "reasoning": asked[key].reasoning,
            "answer": asked[key].answer,
            "raters": [rated.rater for rated in flagged],
            "of": seen[key[0], key[2]],
            "comments": [rated.comment for rated in flagged if rated.comment],
        }
        for key, flagged in sorted(found.items())
    ]


def _blinding(counted: Sequence[Rated]) -> dict[str, Any]:
    counts = Counter(rated.guess for rated in counted)
    sure = counts["correct"] + counts["wrong"]
    return {
        "correct": counts["correct"],
        "unsure": counts["unsure"],
        "wrong": counts["wrong"],
        "of_guesses": share(counts["correct"], sure),
    }


def _intra_rater(study: Collected) -> dict[str, Any]:
    first = {(rated.rater, rated.item): rated for rated in study.rated}
    repeats = [rated for rated in study.rated if rated.repeat_of is not None]
    pairs = [(first[r.rater, r.repeat_of], r) for r in repeats if r.repeat_of and (r.rater, r.repeat_of) in first]
    return intra_rater((r.rater, before.sides[arm], r.sides[arm]) for before, r in pairs for arm in ARMS)


def _judge(run: Run, counted: Sequence[Rated]) -> dict[str, Any] | None:
    """What the model said of the same pairs, and how often the raters' mean says so too; `None`: none was asked."""
    path = run.folder / JUDGED
    if not path.exists():
        return None
    known = {answer.id: (answer.scenario, answer.seed) for answer in run.answers}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        pairs: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for row in rows:
            pair = known[row["first"]]
            if known[row["second"]] != pair:
                raise ValueError(f"{row['first']} and {row['second']} are no pair")
            pairs.setdefault(pair, []).append(row)
        said = {pair: winner(both) for pair, both in pairs.items()}
        found = summary(rows) | {"judge": rows[0]["judge"] if rows else None}
    except (ValueError, KeyError, TypeError) as error:
        raise JudgeUnreadable(f"{path} is damaged or of another run ({error!r}): move it away") from error
    scores: dict[tuple[str, int], list[float]] = {}
    for rated in counted:
        change = sum(getattr(rated.sides["adapter"], n) - getattr(rated.sides["base"], n) for n in DIMENSIONS)
        scores.setdefault((rated.scenario, rated.seed), []).append(change)
    both = [pair for pair in said if pair in scores]
    same = sum(said[pair] == _preferred(sum(scores[pair])) for pair in both)
    return found | {"compared": len(both), "same_as_raters": same}


def _preferred(change: float) -> str:
    return "adapter" if change > 0 else "base" if change < 0 else "tie"
