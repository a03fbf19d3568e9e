"""`python -m services.trainer prepare FILE... --out DIR`: the command line of the data set's making."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from services.trainer.config import ConfigError, TrainConfig, read_config
from services.trainer.dataset import CARD, CARD_TEXT, DatasetError
from services.trainer.prepare.card import card_lines, card_page
from services.trainer.prepare.pipeline import Item, Options, build, check_files
from services.trainer.prepare.problems import ALLOWABLE, Problems
from services.trainer.prepare.write import check_target, write_folder
from services.trainer.rows import load_chat_format

_SHOWN = 200  # problems that the terminal gets without --report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options; those that the training run shares (base, data, max_length, seed, system_prompt) come from its config."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="JSONL: question, think, answer; or messages"
    )
    parser.add_argument("--config", type=Path, help="YAML of the training run")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the config")
    parser.add_argument("--out", help="directory to write; short for --set data=DIR")
    parser.add_argument("--base", help="model directory whose tokenizer counts; short for --set base=DIR")
    parser.add_argument("--max-length", help="longest row in tokens; short for --set max_length=N")
    parser.add_argument("--seed", help="of the split; short for --set seed=N")
    parser.add_argument("--val-share", type=float, default=0.1, help="share of rows held out to stop by (default: 0.1)")
    parser.add_argument(
        "--test-share", type=float, default=0.0, help="share of rows never seen in training (default: 0)"
    )
    parser.add_argument(
        "--near",
        type=float,
        default=0.7,
        help="Jaccard similarity of character n-grams at which two questions are one (default: 0.7)",
    )
    parser.add_argument(
        "--held-out", action="append", type=Path, default=[], metavar="FILE", help="JSONL of questions to keep out"
    )
    parser.add_argument(
        "--empty-think", choices=("refuse", "mask"), default="refuse", help="mask: train them with thinking off"
    )
    parser.add_argument("--drop-bad", action="store_true", help="leave out what has a problem, and count it")
    parser.add_argument(
        "--allow", action="append", choices=ALLOWABLE, default=[], help="let a kind of finding pass, and count it"
    )
    parser.add_argument("--report", type=Path, help="file for every problem, one a line")
    parser.add_argument("--overwrite", action="store_true", help="replace the data set in --out")


def run(args: argparse.Namespace) -> int:
    """0; 1 when the data were refused; 2 with one line for what is wrong with the call, a file or a directory."""
    try:
        return _prepare(args)
    except (ConfigError, DatasetError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2


def _prepare(args: argparse.Namespace) -> int:
    config = _config(args)
    options = _options(args)
    check_target(config.data, args.overwrite)
    chat_format = load_chat_format(config.base)
    checked = check_files(args.files, config, options, chat_format, _progress)
    _report(checked.problems, args.report)
    if checked.problems.found and not args.drop_bad:
        count = len(checked.problems.found)
        print(
            f"prepare: {count:,} problems, nothing was written: mend the lines above, or leave them out with --drop-bad",
            file=sys.stderr,
        )
        return 1
    card, files = build(checked, config, options, chat_format.digest)
    page = {CARD: card.model_dump_json(indent=1).encode() + b"\n", CARD_TEXT: card_page(card).encode()}
    write_folder(config.data, {**files, **page})
    print(card_lines(card))
    print(f"\n{config.data}: data {card.data_sha256[:16]}, described in {CARD_TEXT}")
    return 0


def _config(args: argparse.Namespace) -> TrainConfig:
    short = {"data": args.out, "base": args.base, "max_length": args.max_length, "seed": args.seed}
    settings = [f"{name}={value}" for name, value in short.items() if value is not None]
    return read_config(args.config, [*args.set, *settings])


def _options(args: argparse.Namespace) -> Options:
    if not (args.val_share >= 0 and args.test_share >= 0 and args.val_share + args.test_share < 1):
        raise DatasetError("--val-share and --test-share must be 0 or more, and less than 1 together")
    if not 0 < args.near <= 1:
        raise DatasetError("--near must be above 0 and at most 1")
    return Options(
        val_share=args.val_share,
        test_share=args.test_share,
        near=args.near,
        held_out=tuple(args.held_out),
        mask_empty_think=args.empty_think == "mask",
        allow=frozenset(args.allow),
    )


def _progress(items: Sequence[Item], what: str) -> Iterable[Item]:
    from tqdm import tqdm

    bar: Iterable[Item] = tqdm(items, desc=what, disable=None, leave=False)  # disable=None: only on a terminal
    return bar


def _report(problems: Problems, path: Path | None) -> None:
    lines = [str(problem) for problem in problems.in_order()]
    if path is not None:
        try:
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        except OSError as error:
            raise DatasetError(f"cannot write {path}: {error.strerror or error}") from error
    if not lines:
        return
    shown = lines[:_SHOWN]
    print("\n".join(shown), file=sys.stderr)
    if len(lines) > len(shown):
        print(f"... and {len(lines) - len(shown):,} more; --report FILE gets all of them", file=sys.stderr)
    print(f"\n{problems.summary()}", file=sys.stderr)
