"""run.json: what a run was made of and what came of it, beside its result. Needs no torch."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from services.contract.adapter_files import read_json
from services.contract.adapter_manifest import config_sha256
from services.trainer.config import TrainConfig

RECORD, METRICS, CONFIG, CHECKPOINTS, ADAPTER, MODEL = (
    "run.json",
    "metrics.jsonl",
    "config.yaml",
    "checkpoints",
    "adapter",
    "model",
)
SCHEMA_VERSION = 1
TRAINER_VERSION = "0.1.0"
# Settings that do not change what is learned; a run may be resumed with others.
_FREE = ("out", "base", "data", "report_to", "keep_checkpoints", "loss_chunk", "gradient_checkpointing")
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy", "flash-attn")


def is_first_process() -> bool:
    """Under torchrun one process of the run writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def run_inputs(
    config: TrainConfig, base_config: Mapping[str, Any], data_sha256: str, chat_format: str
) -> dict[str, Any]:
    """All that decides what is learned. Two runs with equal inputs, on one kind of machine, learn the same."""
    settings = {name: value for name, value in config.as_dict().items() if name not in _FREE}
    return settings | {
        "data_sha256": data_sha256,
        "base_config_sha256": config_sha256(base_config),
        "chat_format_sha256": chat_format,
        "processes": processes(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that training depends on, those that are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the code that runs, with `+` when files differ from it; `None` outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """Replaces run.json whole."""
    temporary = out / f".{RECORD}"
    temporary.write_text(json.dumps(dict(record), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, out / RECORD)


def read_record(out: Path) -> dict[str, Any]:
    """Raises `AdapterError` when it is missing or broken."""
    return read_json(out / RECORD)


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return result.stdout.strip()
