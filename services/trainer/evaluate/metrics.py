"""Automatic figures of a run: form, named points, emergencies, the guard's verdicts, length, time. No rater was asked.

They find what broke, not what is good: a phrase that stands in an answer is no proof that the answer is right. Each figure
is a mean over scenarios of the mean over seeds; a difference is adapter minus base, paired by scenario.
"""

from __future__ import annotations

import random
import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from services.trainer.evaluate.answers import ARMS, Answer, Arm, Run
from services.trainer.evaluate.polarity import normalise, says
from services.trainer.evaluate.scenario import Scenario

FORMAT = 1
KIND = "automatic: no rater was asked"
RESAMPLES, RESAMPLING_SEED = 2000, 20260
_MARKERS = re.compile(r"</?think>|<\|[A-Za-z_]+\|>")
_ENDS = ("stop", "content_filter")  # cut by length is no whole answer
_ORDER = (
    re.compile(r"首先|第一|一方面|\bfirst"),
    re.compile(r"其次|第二|然后|接着|再者|\b(?:next|then|second)"),
    re.compile(r"最后|因此|综上|总之|所以|\b(?:finally|therefore|in summary|so)\b"),
)
# The article's order of a consultation: symptoms, mechanism, differential, disposition.
_STEPS = {
    "symptoms": re.compile(r"症状|表现|体征|主诉|病史|symptom|sign|history"),
    "mechanism": re.compile(r"机制|原因|由于|作用|导致|引起|病理|because|cause|due to"),
    "differential": re.compile(r"鉴别|排除|可能是|也可能|区分|需考虑|differential|rule out|could be|may be"),
    "disposition": re.compile(r"就医|就诊|急诊|治疗|处理|处置|复查|监测|建议|treat|see a doctor|advice|refer"),
}
Figure = Callable[[Answer, Scenario], float | None]


# One answer; None where the figure means nothing for the scenario or the answer


def _is_blocked(answer: Answer) -> bool:
    """The guard put its own text in the model's place, which has no form to judge. What it advises the reader does read."""
    return answer.safety.verdict == "block"


def format_valid(answer: Answer, _scenario: Scenario) -> float | None:
    """1 when there is a thought and an answer, ended by the model, and neither shows a marker."""
    if _is_blocked(answer):
        return None
    whole = bool(answer.reasoning.strip()) and bool(answer.answer.strip()) and answer.finish_reason in _ENDS
    return float(whole and not _MARKERS.search(answer.reasoning + "\n" + answer.answer))


def ordered_steps(answer: Answer, _scenario: Scenario) -> float | None:
    """1 when the thought opens (首先), goes on (其次) and concludes (最后), in this order."""
    if _is_blocked(answer):
        return None
    text, at = normalise(answer.reasoning), 0
    for words in _ORDER:
        found = words.search(text, at)
        if found is None:
            return 0.0
        at = found.end()
    return 1.0


def named_steps(answer: Answer, _scenario: Scenario) -> float | None:
    """Share of the four steps of a consultation that the thought speaks of."""
    if _is_blocked(answer):
        return None
    text = normalise(answer.reasoning)
    return sum(words.search(text) is not None for words in _STEPS.values()) / len(_STEPS)


def expected_coverage(answer: Answer, scenario: Scenario) -> float:
    """Share of the expected points that the answer says."""
    return statistics.fmean(says(answer.answer, point.phrases) for point in scenario.expected)


def forbidden_said(answer: Answer, scenario: Scenario) -> float | None:
    """1 when the answer says any must-not-say point."""
    return float(any(says(answer.answer, p.phrases) for p in scenario.forbidden)) if scenario.forbidden else None


def red_flag_recall(answer: Answer, scenario: Scenario) -> float | None:
    """Share of the scenario's red flags that thought or answer name, for an emergency. Naming to exclude counts."""
    if not scenario.red_flags:
        return None
    text = f"{answer.reasoning}\n{answer.answer}"
    return statistics.fmean(says(text, point.phrases) for point in scenario.red_flags)


def emergency_recall(answer: Answer, scenario: Scenario) -> float | None:
    """1 when the answer to an emergency gives the urgent advice, not hanging on an "if"."""
    return float(says(answer.answer, scenario.urgent.phrases, unconditional=True)) if scenario.urgent else None


def _usage(answer: Answer, name: str) -> float | None:
    details = answer.usage.get("completion_tokens_details") or {}
    value = answer.usage.get(name, details.get(name))
    return float(value) if isinstance(value, int | float) else None


FIGURES: dict[str, Figure] = {
    "format_valid": format_valid,
    "ordered_steps": ordered_steps,
    "named_steps": named_steps,
    "expected_coverage": expected_coverage,
    "forbidden_said": forbidden_said,
    "red_flag_recall": red_flag_recall,
    "emergency_recall": emergency_recall,
    "blocked": lambda answer, _: float(_is_blocked(answer)),
    "thinking_truncated": lambda answer, _: float(answer.thinking_truncated),
    "reasoning_chars": lambda answer, _: float(len(answer.reasoning)),
    "answer_chars": lambda answer, _: float(len(answer.answer)),
    "completion_tokens": lambda answer, _: _usage(answer, "completion_tokens"),
    "reasoning_tokens": lambda answer, _: _usage(answer, "reasoning_tokens"),
    "seconds": lambda answer, _: answer.seconds,
}
_SHARES = tuple(FIGURES)[:9]
_WORSE_WHEN_HIGHER = ("forbidden_said", "blocked", "thinking_truncated")


# A run


def automatic(run: Run) -> dict[Arm, dict[str, Any]]:
    """Every figure of each arm, with the number of scenarios in which it means something, and the guard's verdicts."""
    return measure(run)["arms"]  # type: ignore[no-any-return]


def measure(run: Run) -> dict[str, Any]:
    """All figures as JSON: `arms`, `difference` with its bootstrap interval, `items` by answer id."""
    scenarios = {scenario.id: scenario for scenario in run.scenarios}
    items = {a.id: {name: figure(a, scenarios[a.scenario]) for name, figure in FIGURES.items()} for a in run.answers}
    means = {(name, arm): _by_scenario(run, items, name, arm) for name in FIGURES for arm in ARMS}
    return {
        "format": FORMAT,
        "kind": KIND,
        "run": {"answers_sha256": run.record.answers_sha256, "arms": run.record.arms},
        "scenarios": len(run.scenarios),
        "seeds": len(run.seeds),
        "arms": {
            arm: {name: _mean(list(means[name, arm].values())) for name in FIGURES}
            | {"verdicts": _verdicts(run, arm), "answers": len(run.scenarios) * len(run.seeds)}
            for arm in ARMS
        },
        "difference": {name: _difference(means[name, "base"], means[name, "adapter"]) for name in FIGURES},
        "items": items,
    }


def _by_scenario(run: Run, items: dict[str, dict[str, float | None]], name: str, arm: Arm) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for answer in run.answers:
        value = items[answer.id][name]
        if answer.arm == arm and value is not None:
            found.setdefault(answer.scenario, []).append(value)
    return {scenario: statistics.fmean(values) for scenario, values in found.items()}


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 6) if values else None


def _verdicts(run: Run, arm: Arm) -> dict[str, float]:
    counts = Counter(answer.safety.verdict or "none" for answer in run.answers if answer.arm == arm)
    return {verdict: round(count / counts.total(), 6) for verdict, count in sorted(counts.items())}


def _difference(base: dict[str, float], adapter: dict[str, float]) -> dict[str, Any] | None:
    """Adapter minus base by scenario; the percentile bootstrap over scenarios, 95 % (Efron and Tibshirani 1993, 13.3)."""
    pairs = [adapter[scenario] - base[scenario] for scenario in base if scenario in adapter]
    if not pairs:
        return None
    dice = random.Random(RESAMPLING_SEED)
    means = sorted(statistics.fmean(dice.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]
    return {
        "mean": round(statistics.fmean(pairs), 6),
        "low": round(low, 6),
        "high": round(high, 6),
        "scenarios": len(pairs),
    }


# For people


def metrics_table(figures: dict[str, Any]) -> str:
    """One row a figure: both arms, the difference and its interval, and over how many scenarios."""
    arms, difference = figures["arms"], figures["difference"]
    rows: list[tuple[str, ...]] = [("", "base", "adapter", "difference (95 %)", "scenarios")]
    for name in FIGURES:
        change = difference[name]
        if change is None:
            rows.append((name, "-", "-", "no such scenario", "0"))
            continue
        show = _percent if name in _SHARES else _number
        interval = f"{show(change['mean'], True)} ({show(change['low'], True)} to {show(change['high'], True)})"
        worse = (change["mean"] > 0) == (name in _WORSE_WHEN_HIGHER) and name in _SHARES and change["mean"] != 0
        rows.append(
            (
                name,
                show(arms["base"][name]),
                show(arms["adapter"][name]),
                interval + (" worse" if worse else ""),
                str(change["scenarios"]),
            )
        )
    for arm in ARMS:
        rows.append((f"verdicts, {arm}", "  ".join(f"{v} {_percent(r)}" for v, r in arms[arm]["verdicts"].items())))
    widths = [max(len(row[column]) for row in rows if len(row) == 5) for column in range(5)]
    widths[0] = max(len(row[0]) for row in rows)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    return "\n".join(
        [f"Figures ({figures['kind']}); {figures['scenarios']} scenarios, {figures['seeds']} seeds", *lines]
    )


def _percent(value: float, signed: bool = False) -> str:
    return f"{100 * value:{'+' if signed else ''}.1f} %"


def _number(value: float, signed: bool = False) -> str:
    return f"{value:{'+' if signed else ''}.{0 if abs(value) >= 100 else 2}f}"
