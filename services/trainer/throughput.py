"""How fast a run will go: from an earlier run like it on this machine, or from a short probe. Never guessed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.contract.adapter_manifest import config_sha256
from services.trainer.config import TrainConfig
from services.trainer.run_record import METRICS, RECORD

# Settings that change the speed; a run that agrees in these, the base and the device tells how fast another goes.
_ALIKE = (
    "method",
    "precision",
    "trained_weights",
    "packing",
    "batch_tokens",
    "batch_size",
    "attention",
    "targets",
    "dropout",
)
_WARM_UP = 2  # steps whose speed tells of start-up


@dataclass(frozen=True)
class Rate:
    """Tokens a second over all devices, padding not counted, and where the number is from."""

    tokens_per_s: float
    source: str


def rate_of_earlier_run(
    config: TrainConfig, base_config: dict[str, Any], *, device: str, devices: int, checkpointing: bool
) -> Rate | None:
    """From the runs beside `config.out`; the latest that is alike. `device` is the GPU's name, or `cpu`."""
    wanted = {name: value for name, value in config.as_dict().items() if name in _ALIKE}
    found: list[tuple[float, Rate]] = []
    for folder, record in _records(config.out.parent):
        settings = record.get("config")
        if (
            isinstance(settings, dict)
            and {name: settings.get(name) for name in wanted} == wanted
            and record.get("base_config_sha256") == config_sha256(base_config)
            and (record.get("device"), record.get("processes")) == (device, devices)
            and record.get("gradient_checkpointing") == checkpointing
            and (speeds := _speeds(folder / METRICS)[_WARM_UP:])
        ):
            found.append(
                (float(record.get("began") or 0), Rate(statistics.median(speeds), f"the run in {folder.name}"))
            )
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _records(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.glob(f"*/{RECORD}")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # another program's, or a run that is being written: it only would have helped
        if isinstance(record, dict):
            yield path.parent, record


def _speeds(path: Path) -> list[float]:
    speeds: list[float] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if "tokens_per_s" in entry:
                speeds.append(float(entry["tokens_per_s"]))
    except (OSError, ValueError, TypeError):
        return []
    return speeds
