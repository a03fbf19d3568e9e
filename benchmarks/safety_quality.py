"""How good the guard is on labelled replies: `python -m benchmarks.safety_quality [FILE.jsonl ...] [--profile seed]`.

Without files: the held-out half of the project's cases, which nobody who writes rules reads. Prints aggregates only, so that
looking at the score does not become looking at the cases.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.api.safety.judge import Judge, judge_reply
from services.api.safety.opening import Opening
from services.api.safety.policy import read_policy
from services.api.safety.rules import default_rules
from services.api.safety.seed import SeedJudge
from services.api.safety.verdicts import RULES

CASES = Path(__file__).resolve().parents[1] / "tests" / "api" / "safety" / "cases"


@dataclass(frozen=True)
class Score:
    """Shares of 1. A wrong kind of intervention (amend for block) is a miss of the one and no false positive."""

    cases: int
    block_recall: float
    block_precision: float
    amend_recall: float
    amend_precision: float
    false_positives: float
    accuracy: float


def read_cases(paths: Iterable[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines() if line]


def verdict_of(judging: Opening, case: dict[str, Any]) -> str:
    """`pass`, `amend` or `block`; `annotate` counts as pass."""
    messages = [(m["role"], m["content"]) for m in case.get("messages", [])]
    if isinstance(case.get("user"), str):
        messages.append(("user", case["user"]))
    found = judge_reply(judging, messages, case["reply"]).verdict.word
    return "pass" if found == "annotate" else found


def score(pairs: Sequence[tuple[str, str]]) -> Score:
    """Of (expected, found) verdicts."""
    counts = Counter(pairs)
    expected, found = Counter(e for e, _ in pairs), Counter(f for _, f in pairs)
    return Score(
        len(pairs),
        _share(counts["block", "block"], expected["block"]),
        _share(counts["block", "block"], found["block"]),
        _share(counts["amend", "amend"], expected["amend"]),
        _share(counts["amend", "amend"], found["amend"]),
        _share(counts["pass", "amend"] + counts["pass", "block"], expected["pass"]),
        _share(sum(n for (e, f), n in counts.items() if e == f), len(pairs)),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def table(cases: Sequence[dict[str, Any]], verdicts: Sequence[str]) -> str:
    """All cases, then each rule's: its recall by expected verdict; passes by language."""
    total = score([(case["expected"], found) for case, found in zip(cases, verdicts, strict=True)])
    lines = [
        f"{total.cases} cases: three-way accuracy {total.accuracy:.3f}, false positives on pass {total.false_positives:.3f}",
        f"block: recall {total.block_recall:.3f}, precision {total.block_precision:.3f}; "
        f"amend: recall {total.amend_recall:.3f}, precision {total.amend_precision:.3f}",
        "",
        f"{'rule':<26}{'expected':<10}{'cases':>6}{'right':>7}",
    ]
    for rule in (*RULES, "none"):
        for expected in ("block", "amend", "pass"):
            right = [f == expected for c, f in zip(cases, verdicts, strict=True)
                     if (c["rule"], c["expected"]) == (rule, expected)]  # fmt: skip
            if right:
                lines.append(f"{rule:<26}{expected:<10}{len(right):>6}{sum(right) / len(right):>7.2f}")
    for language in sorted({str(case.get("lang")) for case in cases}):
        pairs = [(c["expected"], f) for c, f in zip(cases, verdicts, strict=True) if c.get("lang") == language]
        lines.append(f"{language:<36}{len(pairs):>6}{score(pairs).accuracy:>7.2f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, default=[CASES / "held_out.jsonl"])
    parser.add_argument("--profile", choices=("default", "seed"), default="default")
    options = parser.parse_args(arguments)
    judging: Opening = SeedJudge() if options.profile == "seed" else Judge(read_policy(), default_rules())
    cases = read_cases(options.files)
    print(f"profile {options.profile}, policy {judging.label}")
    print(table(cases, [verdict_of(judging, case) for case in cases]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
