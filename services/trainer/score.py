"""`score`: opens the key, checks every sheet, and says what the ratings show: report.json, report.md and report.html.

Nothing is counted silently: a sheet that is torn, open, of another study or of nobody is refused by name.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from services.trainer.evaluate.answers import replace_file
from services.trainer.evaluate.collect import collect

REPORT, MARKDOWN, PAGE = "report.json", "report.md", "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", dest="answers", type=Path, required=True, metavar="RUN", help="folder of `answer`")
    parser.add_argument("--packets", type=Path, required=True, help="folder of `blind`, with the seal")
    parser.add_argument("--key", type=Path, required=True, metavar="KEY.json", help="opened now, and not before")
    parser.add_argument(
        "--sheets", type=Path, nargs="+", required=True, metavar="FILE|FOLDER", help="what the raters returned"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="REPORTDIR", help="folder for the report")
    parser.add_argument(
        "--allow-missing",
        type=_names,
        default=(),
        metavar="R3,...",
        help="raters without a sheet; the report names them",
    )
    parser.add_argument(
        "--allow-partial", action="store_true", help="count sheets with items left out; the report says how many"
    )


def run(options: argparse.Namespace) -> int:
    """0 and the table. Errors are raised, before anything is written."""
    from services.trainer.evaluate.report import dump_report, make_report  # scipy and numpy are needed here alone
    from services.trainer.evaluate.report_html import html
    from services.trainer.evaluate.report_table import markdown, terminal

    study = collect(
        options.answers,
        options.packets,
        options.key,
        options.sheets,
        allow_missing=options.allow_missing,
        allow_partial=options.allow_partial,
    )
    report = make_report(study)
    written = {
        MARKDOWN: markdown(report).encode(),
        PAGE: html(report).encode(),
        REPORT: dump_report(report),  # last: where it lies, the others do
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in written.items():
        replace_file(options.out / name, content)
    print(terminal(report, colours=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    print(f"\nreport: {options.out / PAGE}\nnext: publish --require-report {options.out / REPORT}")
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
