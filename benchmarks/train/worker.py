"""One recipe in one mode, in a process of its own: `python -m benchmarks.train.worker SPEC RESULT`, both JSON files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.train.modes import MODES, Mode
from benchmarks.train.rows import MOST, PlainRow, make_rows, mixed_lengths

Recipe = Callable[[Path, Mode, Sequence[PlainRow], Path], Any]


def recipe(name: str, longest: int) -> Recipe:
    """Imports only what that recipe needs."""
    if name.startswith("plain"):
        from benchmarks.train.plain import run_plain

        pad_to = longest if name == "plain-padded" else None
        return lambda model, mode, rows, out: run_plain(model, mode, rows, out, pad_to)
    if name.startswith("trl"):
        from benchmarks.train.trl_sft import run_trl

        return lambda model, mode, rows, out: run_trl(model, mode, rows, out, name == "trl-packed")
    from benchmarks.train.ours import run_ours

    return lambda model, mode, rows, out: run_ours(model, mode, rows, out, name == "ours")


def rows_of(mode: Mode, count: int, longest: int, ids_below: int) -> list[PlainRow]:
    """The same for every recipe."""
    lengths = mixed_lengths(count, longest) if mode.lengths == "mix" else [longest] * count
    return make_rows(lengths, ids_below)


def main(arguments: Sequence[str]) -> None:
    spec, result = json.loads(Path(arguments[0]).read_text(encoding="utf-8")), Path(arguments[1])
    mode = next(mode for mode in MODES if mode.name == spec["mode"])
    longest = int(spec.get("longest", MOST))
    rows = rows_of(mode, int(spec["rows"]), longest, int(spec["ids_below"]))
    watch, tokens = recipe(spec["recipe"], longest)(Path(spec["model"]), mode, rows, Path(spec["out"]))
    figures = watch.measured(tokens, int(spec["warm_up"]))
    result.write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
