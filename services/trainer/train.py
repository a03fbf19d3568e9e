"""`train`: a prepared data set to an adapter, or to a fully trained model. Checks everything it can before torch is loaded.

On several GPUs: `torchrun --nproc-per-node N -m services.trainer train ...`; adapters by DDP, full fine-tunes by FSDP.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.contract.adapter_files import AdapterError
from services.contract.chat_format import ChatFormat
from services.trainer import checkpoint
from services.trainer.base_model import ModelError, check_base
from services.trainer.checkpoint import CheckpointError
from services.trainer.config import ConfigError, TrainConfig, read_config
from services.trainer.dataset import DatasetError, Prepared, read_prepared
from services.trainer.device_memory import DeviceError
from services.trainer.errors import TrainError
from services.trainer.rows import TrainingRow, check_tokenizer, load_chat_format, training_rows
from services.trainer.run_record import ADAPTER, CHECKPOINTS, METRICS, MODEL, RECORD, is_first_process, run_inputs

ERRORS = (AdapterError, CheckpointError, ConfigError, DatasetError, DeviceError, ModelError, TrainError)
LATEST = Path()
_PACKAGES = {"tensorboard": "tensorboard", "swanlab": "swanlab"}


@dataclass(frozen=True)
class Job:
    """A run whose inputs are checked: what the training loop needs."""

    config: TrainConfig
    base_config: dict[str, Any]
    chat_format: ChatFormat
    data: Prepared
    rows: list[TrainingRow]
    eval_rows: list[TrainingRow]
    inputs: dict[str, Any]
    gradient_checkpointing: bool
    resume: Path | None

    @property
    def system_prompt(self) -> str:
        return self.data.card.system_prompt if self.config.system_prompt is None else self.config.system_prompt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="YAML file of settings (default: none, only defaults)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one setting; wins over --config"
    )
    parser.add_argument(
        "--resume", nargs="?", type=Path, const=LATEST, metavar="CHECKPOINT",
        help="go on from this checkpoint, or from the run's latest complete one",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """0, or 1 with one line for what is wrong; 3 when it was told to stop and can be resumed."""
    # Before torch is loaded. Threads that spin while they wait take the cores from a server on the same machine, and from each
    # other: beside another busy process a step of the demo model takes three times as long as with threads that sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        job = prepare_job(read_config(options.config, options.set), options.resume)
    except ERRORS as error:
        if is_first_process():  # all find the same
            print(f"train: {error}", file=sys.stderr)
        return 1
    from services.trainer.loop import fit

    try:
        return fit(job)
    except ERRORS as error:
        where = "" if is_first_process() else f"process {os.environ['RANK']}: "
        print(f"train: {where}{error}", file=sys.stderr)
        return 1


def prepare_job(config: TrainConfig, resume: Path | None) -> Job:
    """Raises one of `ERRORS` for whatever would make the run fail later."""
    base_config = check_base(config.base)
    chat_format = load_chat_format(config.base)
    data = read_prepared(config.data)
    check_tokenizer(data, chat_format, config.base)
    if not data.rows.get("train"):
        raise DatasetError(f"{config.data} has no rows to train on: run `prepare` with more dialogues")
    _check_reporters(config)
    inputs = run_inputs(config, base_config, data.card.data_sha256, chat_format.digest)
    checkpoint_folder = _open_run(config, resume, inputs)
    checkpointing = _check_plan(config)
    rows, eval_rows = (
        training_rows(data, split, chat_format, config.system_prompt, config.max_length) for split in ("train", "val")
    )
    return Job(
        config, base_config, chat_format, data, rows, eval_rows, inputs, checkpointing, checkpoint_folder
    )  # fmt: skip


def _check_reporters(config: TrainConfig) -> None:
    for name in config.report_to:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise TrainError(f"report_to {name} needs the package {_PACKAGES[name]}: install it, or leave {name} out")


def _check_plan(config: TrainConfig) -> bool:
    """Whether to recompute activations. Raises `TrainError` with the planner's advice when the run cannot fit."""
    from services.trainer.plan import plan

    verdict = plan(config)
    if not verdict.fits:
        raise TrainError(f"this run does not fit: {verdict.advice}")
    if verdict.disk_needed > verdict.disk_free:
        needed, free = verdict.disk_needed / 1e9, verdict.disk_free / 1e9
        raise TrainError(
            f"checkpoints and result need {needed:.1f} GB and {config.out} has {free:.1f} GB left: free some, "
            "set out to another disk, or keep_checkpoints lower"
        )
    return verdict.gradient_checkpointing


def _open_run(config: TrainConfig, resume: Path | None, inputs: dict[str, Any]) -> Path | None:
    """Makes the run's folder, or finds the checkpoint to go on from."""
    out = config.out
    if resume is not None:
        folder = checkpoint.newest(out / CHECKPOINTS) if resume == LATEST else resume
        checkpoint.check(folder, inputs)
        _check_writable(out)
        return folder
    if is_first_process():
        if any((out / name).exists() for name in (ADAPTER, MODEL)) or checkpoint.has_complete(out / CHECKPOINTS):
            raise TrainError(f"{out} holds a run already: go on with --resume, or set out to another folder")
        _clear_failed_run(out)
    _check_writable(out)
    return None


def _clear_failed_run(out: Path) -> None:
    """Takes away what a run left that came to nothing: no checkpoint to go on from, and no result."""
    if (out / RECORD).is_file():
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
        (out / METRICS).unlink(missing_ok=True)


def _check_writable(out: Path) -> None:
    probe = out / f".writable.{os.getpid()}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise TrainError(f"cannot write to {out} ({error.strerror or error}): set out to another folder") from error
