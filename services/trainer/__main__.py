"""`python -m services.trainer COMMAND`: the commands of the trainer."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.trainer import evaluate_demo, train_demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0, or 2 with one line for what is wrong with the input."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except ValueError as error:  # of the trainer's own kinds; their messages say what to mend
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return status


# In the order in which data meets them: module under services.trainer, and what it is for.
COMMANDS = {
    "prepare": "check dialogues, split them, write the data set and its card",
    "plan": "say before training whether it fits, what it takes, and what to change if not",
    "train": "LoRA or full fine-tuning",
    "answer": "ask a running API the same scenarios with the base and with an adapter",
    "blind": "make packets for raters in which nothing tells the arms apart, and the key",
    "score": "check the raters' sheets, open the key, and write the report",
    "publish": "check an adapter and make it the current version on the shared volume",
    "rollback": "point back to an earlier version",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.trainer", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, purpose in COMMANDS.items():
        module = importlib.import_module(f"services.trainer.{name}")
        command = commands.add_parser(name, help=purpose, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    loop = commands.add_parser("train-demo", help="the whole loop on the example set, against a running server")
    train_demo.add_arguments(loop)
    loop.set_defaults(run=lambda options: train_demo.run(options, main))
    whole = commands.add_parser(
        "evaluate-demo", help="ask a running server's demo model and its adapter, and compare their answers"
    )
    evaluate_demo.add_arguments(whole)
    whole.set_defaults(run=lambda options: evaluate_demo.run(options, main))
    _add_demo(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="make the demo model from the dialogues in services/trainer/demo/dialogues")
    demo.add_argument("--out", type=Path, default=Path("deploy/demo"), help="model directory (default: %(default)s)")
    demo.add_argument("--epochs", type=int, help="0 writes an untrained model")
    demo.add_argument("--seed", type=int, help="for weights, rows and their order")
    demo.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    demo.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other setting of the recipe"
    )
    demo.add_argument("--no-measure", action="store_true", help="only train and write")
    demo.add_argument("--measure-only", action="store_true", help="measure the model in --out and change nothing")
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from services.trainer.demo.build import build_demo, measure_demo  # torch is imported by this command alone
    from services.trainer.demo.dialogues import read_corpus
    from services.trainer.demo.recipe import Recipe
    from services.trainer.demo.train import pick_device

    if options.measure_only:
        measure_demo(options.out, read_corpus(), pick_device(options.device))
        return 0
    short = {"epochs": options.epochs, "seed": options.seed}
    recipe = Recipe().changed([f"{name}={value}" for name, value in short.items() if value is not None])
    build_demo(options.out, recipe.changed(options.set), options.device, measured=not options.no_measure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
