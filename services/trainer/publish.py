"""`publish`: a run's result onto the shared volume, where running servers take it up, or one line of why not.

Everything is checked on a staged copy before anything is visible, so what was checked is what gets served. A refusal
leaves the volume as it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from services.contract.adapter_manifest import CURRENT, AdapterError, Manifest, publish
from services.trainer.evaluate.gate import MARGIN, Passed, check_version, pass_gate
from services.trainer.publish_checks import (
    Base,
    RunRecord,
    check_adapter,
    check_free_name,
    check_record,
    find_adapter,
    find_result,
    read_base,
    read_record,
)

SERVED_RANK = 32  # what a server loads unless MEDTHINK_MAX_ADAPTER_RANK says otherwise
_STEPS = {
    "clear": "clearing away what killed publishers left",
    "stage": "copying to the volume, where nobody sees it yet",
    "check": "checking options, shapes and every number",
    "manifest": "writing the manifest",
    "rename": "making the version visible",
    "current": f"pointing {CURRENT} to it",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", dest="result", type=Path, required=True, metavar="DIR", help="a run's folder, or the adapter's in it"
    )  # dest: the program keeps its commands under `run`
    parser.add_argument("--name", required=True, help="name that clients ask for")
    parser.add_argument("--volume", type=Path, required=True, help="folder that trainer and servers share")
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model that the run used")
    parser.add_argument(
        "--canary",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask the model a few questions with and without it (default: yes; needs torch)",
    )
    parser.add_argument(
        "--max-rank", type=int, default=SERVED_RANK, help="largest rank that the servers load (default: %(default)s)"
    )
    parser.add_argument(
        "--unrecorded", action="store_true", help="publish although no run.json says what it was made on"
    )
    parser.add_argument(
        "--require-report",
        type=Path,
        metavar="REPORT.json",
        help="refuse unless this report of `score` on this very adapter shows no harm",
    )
    parser.add_argument(
        "--report-margin",
        type=float,
        default=MARGIN,
        metavar="POINTS",
        help="lowest bound allowed of a dimension's change, in points of the 1-5 scale (default: %(default)s)",
    )
    parser.add_argument(
        "--accept-simulated", action="store_true", help="accept a report of simulated raters; the manifest says so"
    )
    parser.add_argument("--full", action="store_true", help="a full fine-tune: a model directory, no adapter")


def run(options: argparse.Namespace) -> int:
    """0 and what is current now; or 1 and, on one line, why nothing was published and what to do."""
    try:
        _check_volume(options.volume)
        base = read_base(options.base)
        check_free_name(options.name, base)
        told = _publish_model(options, base) if options.full else _publish_adapter(options, base)
    except (AdapterError, OSError) as error:
        print(f"publish: {error}", file=sys.stderr)
        return 1
    print(told)
    return 0


def _check_volume(volume: Path) -> None:
    # Not made here: a mistyped or unmounted volume would take the adapter, and no server would ever see it.
    if not volume.is_dir():
        raise AdapterError(f"there is no folder {volume}: mount the volume, or make it with mkdir, and publish again")


def _publish_adapter(options: argparse.Namespace, base: Base) -> str:
    folder = find_adapter(options.result)
    record = check_record(read_record(folder), base, options.unrecorded)
    passed = _pass_gate(options)
    details = record.details(base).model_copy(update={"evaluation": passed.record if passed else None})

    def check(staged: Path) -> dict[str, Any] | None:
        if passed:
            check_version(passed, staged)
        check_adapter(staged, base, options.max_rank)
        return _try_out(staged, base, record, full=False) if options.canary else None

    manifest = publish(options.volume, options.name, folder, details, check=check, on_step=_progress("current"))
    return _describe(manifest)


def _pass_gate(options: argparse.Namespace) -> Passed | None:
    if not options.require_report:
        return None
    passed = pass_gate(options.require_report, options.report_margin, options.accept_simulated)
    warning = " BY SIMULATED RATERS, WHICH PROVES NOTHING" if passed.record.simulated else ""
    _say(f"      the report shows no harm{warning}: {passed.told}")
    return passed


def _publish_model(options: argparse.Namespace, base: Base) -> str:
    from services.trainer.publish_model import CONFIG, publish_model

    if options.require_report:
        raise AdapterError("--require-report is for adapters, whose version a report names: leave it out with --full")
    folder = find_result(options.result, CONFIG)
    record = check_record(read_record(folder), base, options.unrecorded)

    def check(staged: Path) -> dict[str, Any] | None:
        if read_base(staged).record.chat_format_sha256 != base.record.chat_format_sha256:
            raise AdapterError(f"{folder} has another tokenizer than {base.folder}: train again with the base's own")
        return _try_out(staged, base, record, full=True) if options.canary else None

    target = publish_model(
        options.volume, options.name, folder, base, record.details(base), check=check, on_step=_progress("rename")
    )
    return f"MEDTHINK_MODEL={target.resolve()}"


def _try_out(staged: Path, base: Base, record: RunRecord, full: bool) -> dict[str, Any]:
    from services.trainer.canary import try_adapter, try_model

    trial = try_model if full else try_adapter
    report = trial(base.folder, staged, base.chat_format, record.system_prompt, lambda text: _say(f"      {text}"))
    _say(
        f"      largest change of a logit {report.largest_logit_change:.3g}; thinking format on "
        f"{report.format_after} of {report.questions} questions, before training {report.format_before}"
    )
    return report.as_metrics()


def _progress(last: str) -> Any:
    """A step callback that shows each step with its number, up to the step `last`."""
    names = list(_STEPS)[: list(_STEPS).index(last) + 1]

    def show(step: str) -> None:
        if step in names:
            _say(f"[{names.index(step) + 1}/{len(names)}] {_STEPS[step]}")

    return show


def _describe(manifest: Manifest) -> str:
    return (
        f"{manifest.name}@{manifest.version} is current "
        f"(rank {manifest.rank}, {' '.join(manifest.targets)}, base {manifest.base.id})"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
