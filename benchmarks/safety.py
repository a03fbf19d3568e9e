"""What the guard costs: time to judge a sentence, and its share of a core at a server's full speed.

`python -m benchmarks.safety [--out FILE.json]`. No engine: replies are judged as the gate judges them, sentence by sentence.
The texts are the demo model's dialogues, ordinary replies that pass, and the labelled cases, where much is found.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from services.api.safety.judge import Judge
from services.api.safety.policy import read_policy
from services.api.safety.rules import default_rules
from services.api.safety.sentences import SentenceCutter

ROOT = Path(__file__).resolve().parents[1]
DIALOGUES = ROOT / "services" / "trainer" / "demo" / "dialogues"
CASES = ROOT / "tests" / "api" / "safety" / "cases" / "develop.jsonl"


@dataclass(frozen=True)
class Reply:
    """A question, the thought and the answer to it."""

    user: str
    think: str
    answer: str


@dataclass(frozen=True)
class Figures:
    """Times in microseconds; `opening` is the assessment of the conversation before the first token."""

    texts: str
    replies: int
    sentences: int
    characters: int
    sentence_p50: float
    sentence_p99: float
    sentence_worst: float
    opening_p50: float
    opening_p99: float
    per_character: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--repeat", type=int, default=3, help="passes; the first one warms up")
    options = parser.parse_args(arguments)
    begun = time.perf_counter()
    judging = Judge(read_policy(), default_rules())
    load_s = time.perf_counter() - begun
    found = [
        measure(judging, "dialogues", list(dialogues()), options.repeat),
        measure(judging, "labelled cases", list(cases()), options.repeat),
    ]
    print(table(found))
    print(f"policy {judging.label} read and checked in {load_s:.2f} s; {platform.machine()}, one core")
    if options.out:
        record = {"at": datetime.now(UTC).isoformat(), "load_s": load_s, "figures": [asdict(f) for f in found]}
        options.out.write_text(json.dumps(record, indent=2) + "\n")
    return 0


def dialogues() -> Iterator[Reply]:
    for path in sorted(DIALOGUES.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "answer" in row:
                yield Reply(row["question"], row["think"], row["answer"])


def cases() -> Iterator[Reply]:
    for line in CASES.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if isinstance(row.get("user"), str):
            yield Reply(row["user"], "", row["reply"])


def measure(judging: Judge, texts: str, replies: Sequence[Reply], repeat: int) -> Figures:
    """Every reply is judged `repeat` times; of the passes but the first, each sentence's quickest counts."""
    passes = [one_pass(judging, replies) for _ in range(max(2, repeat))][1:]
    sentences = [min(times) for times in zip(*(p[0] for p in passes), strict=True)]
    openings = [min(times) for times in zip(*(p[1] for p in passes), strict=True)]
    characters = sum(len(r.think) + len(r.answer) for r in replies)
    return Figures(
        texts,
        len(replies),
        len(sentences),
        characters,
        statistics.median(sentences),
        percentile(sentences, 99),
        max(sentences),
        statistics.median(openings),
        percentile(openings, 99),
        (sum(sentences) + sum(openings)) / characters,
    )


def one_pass(judging: Judge, replies: Sequence[Reply]) -> tuple[list[float], list[float]]:
    """Microseconds of each sentence and of each opening."""
    sentences, openings = [], []
    for reply in replies:
        begun = time.perf_counter()
        case = judging.open([("user", reply.user)])
        openings.append((time.perf_counter() - begun) * 1e6)
        for part, text in (("reasoning", reply.think), ("answer", reply.answer)):
            cutter, at = SentenceCutter(), 0
            for sentence in [*cutter.add(text), *cutter.end()]:
                begun = time.perf_counter()
                judging.sentence(case, "reasoning" if part == "reasoning" else "answer", sentence, at)
                sentences.append((time.perf_counter() - begun) * 1e6)
                at += len(sentence)
        judging.end(case)
    return sentences, openings


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def table(found: Sequence[Figures]) -> str:
    head = f"{'texts':<16}{'sentences':>10}{'p50 µs':>9}{'p99 µs':>9}{'worst µs':>10}{'input p50':>11}{'p99':>8}{'µs/char':>10}"
    rows = [
        f"{f.texts:<16}{f.sentences:>10,}{f.sentence_p50:>9.0f}{f.sentence_p99:>9.0f}{f.sentence_worst:>10.0f}"
        f"{f.opening_p50:>11.0f}{f.opening_p99:>8.0f}{f.per_character:>10.2f}"
        for f in found
    ]
    return "\n".join([head, "-" * len(head), *rows])


if __name__ == "__main__":
    raise SystemExit(main())
