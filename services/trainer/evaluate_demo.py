"""The whole evaluation for a newcomer: both arms asked on a running server, packets made, and a report on made-up ratings.

Needs `make serve` and the adapter that `make train-demo` publishes. The demo model knows a few dozen everyday topics and
none of the clinical scenarios, so twelve questions on its own topics are asked (evaluate/demo_scenarios.jsonl). No
physician is asked: the ratings are simulated, and what comes out shows the machinery and says nothing of any model.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from services.trainer.evaluate.scenario import SCENARIOS

ROOT = Path(__file__).resolve().parents[2]
DEMO_SCENARIOS = SCENARIOS.with_name("demo_scenarios.jsonl")

Command = Callable[[Sequence[str]], int]


class DemoError(RuntimeError):
    """A step that cannot be taken; one line with the cause and the next step."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the running API (default: %(default)s)")
    parser.add_argument(
        "--adapter", default="children-medicines", metavar="NAME[@VERSION]", help="default: train-demo's"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "evaluate-demo", help="folder for runs")
    parser.add_argument("--seeds", type=int, default=2, metavar="K", help="answers per scenario and arm (default: 2)")


def run(options: argparse.Namespace, command: Command) -> int:
    """0 and the folder of the answers; 1 with one line for the step that failed. `command` runs a trainer command."""
    try:
        _evaluate(options, command)
    except DemoError as error:
        print(f"evaluate-demo: {error}", file=sys.stderr)
        return 1
    return 0


def _evaluate(options: argparse.Namespace, command: Command) -> None:
    print("Demo: twelve questions that the demo model can know. Nothing here is about medicine.", flush=True)
    folder = _new_folder(options.out)
    asked = ["--out", str(folder), "--url", options.url, "--adapter", options.adapter]
    short = ["--scenarios", str(DEMO_SCENARIOS), "--seeds", str(options.seeds), "--max-tokens", "600"]
    _step(
        command, "answer", [*asked, *short], "is `make serve` running, and has `make train-demo` published the adapter?"
    )
    packets, key, sheets, report = (folder / name for name in ("packets", "key.json", "simulated-sheets", "report"))
    blinded = ["--run", str(folder), "--out", str(packets), "--key", str(key), "--raters", "3"]
    _step(command, "blind", blinded, "have the answers in this folder been changed?")
    print(f"Demo: what a rater opens is {packets / 'r1' / 'form.html'}", flush=True)
    print("Demo: the raters are SIMULATED; no number below is evidence.", flush=True)
    _simulate(key, sheets)
    opened = ["--packets", str(packets), "--key", str(key), "--sheets", str(sheets), "--out", str(report)]
    _step(command, "score", ["--run", str(folder), *opened], "have the packets in this folder been changed?")


def _new_folder(out: Path) -> Path:
    """Named by the time, so that the demo can be run again; with a number where two begin in one second."""
    first = folder = out / time.strftime("run-%Y%m%d-%H%M%S")
    number = 1
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


def _simulate(key: Path, sheets: Path) -> None:
    from services.trainer.evaluate.simulate import Raters, write_simulated_sheets  # numpy is needed here alone

    write_simulated_sheets(key, sheets, Raters(), seed=1)


def _step(command: Command, name: str, arguments: list[str], question: str) -> None:
    status = command([name, *arguments])
    if status:
        raise DemoError(f"{name} ended with status {status} (its own message is above): {question}")
