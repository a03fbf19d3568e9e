"""Checkpoints that are complete or none: a file, written last, names every other file's size and hash, and the run's inputs.

Needs no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.contract.adapter_files import AdapterError, file_record, read_json

SEAL = "complete.json"
STATE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointError(ValueError):
    """A checkpoint that cannot be resumed from; the message names the cause and the next step."""


def seal(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Writes the seal over all files that are there."""
    files = {
        str(path.relative_to(folder)): file_record(path).model_dump()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SEAL
    }
    temporary = folder / f".{SEAL}"
    temporary.write_text(json.dumps({"inputs": dict(inputs), "files": files}, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / SEAL)


def newest(folder: Path) -> Path:
    """The latest complete checkpoint of a run. One that a killed run was still writing is passed over."""
    complete = _complete(folder)
    if not complete:
        raise CheckpointError(f"there is no complete checkpoint in {folder}: start without --resume")
    return complete[-1]


def has_complete(folder: Path) -> bool:
    return bool(_complete(folder))


def check(folder: Path, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's state in a checkpoint. Raises `CheckpointError` for one that is damaged or of a run on other inputs."""
    if not (folder / SEAL).is_file():
        raise CheckpointError(f"{folder} is no complete checkpoint (it has no {SEAL}): resume from another one")
    try:
        record = read_json(folder / SEAL)
        state = read_json(folder / STATE)
        for name, expected in record["files"].items():
            found = file_record(folder / name)
            if found.size != expected["size"]:
                raise AdapterError(f"{name} has {found.size} bytes where it had {expected['size']}: it was cut off")
            if found.sha256 != expected["sha256"]:
                raise AdapterError(f"{name} is not what was saved")
    except (AdapterError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is damaged ({error}): resume from another one, or start anew") from error
    before, now = record["inputs"], json.loads(json.dumps(dict(inputs)))
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        differences = ", ".join(f"{name} was {before.get(name)} and is {now.get(name)}" for name in changed)
        raise CheckpointError(f"{folder} is of another run: {differences}. Resume with the same, or start a new run")
    return state


def discard_after(metrics: Path, step: int) -> None:
    """Takes the lines of later steps out of metrics.jsonl: a resumed run writes them again."""
    with contextlib.suppress(FileNotFoundError):
        lines = metrics.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step(line) <= step]
        temporary = metrics.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(temporary, metrics)


def _step(line: str) -> float:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return float(json.loads(line)["step"])
    return float("inf")  # half a line, from a run that was killed


def _complete(folder: Path) -> list[Path]:
    entries = folder.iterdir() if folder.is_dir() else ()
    found = sorted((int(m[1]), path) for path in entries if (m := _NAME.fullmatch(path.name)))
    return [path for _, path in found if (path / SEAL).is_file()]
