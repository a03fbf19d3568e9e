"""`plan`: says before a training run what it will take, whether that is there, and what to change if it is not.

Reads the base's config.json and the prepared data; loads no weights. `train` asks `plan` before it begins.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.contract.adapter_files import AdapterError, read_json
from services.trainer.base_model import ModelError
from services.trainer.config import ConfigError, TrainConfig, read_config
from services.trainer.dataset import DatasetError
from services.trainer.device_memory import Budget, DeviceError, find_budget
from services.trainer.memory import Load, Memory, Shape, trainable_parameters
from services.trainer.plan_advice import Advice, advise
from services.trainer.plan_load import Planner
from services.trainer.plan_work import Work, count_work, read_rows
from services.trainer.run_record import is_first_process, processes
from services.trainer.throughput import Rate, rate_of_earlier_run

ERRORS = (AdapterError, ConfigError, DatasetError, DeviceError, ModelError)


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it begins. `work` is none without data, `rate` none where nothing was measured."""

    config: TrainConfig
    parameters: int
    trainable: int
    gradient_checkpointing: bool
    devices: int
    micro_batch_tokens: int
    memory: Memory
    budget: Budget
    overhead: int
    work: Work | None
    rate: Rate | None
    disk_needed: int
    disk_free: int
    remedy: Advice | None

    @property
    def needed(self) -> int:
        """Bytes on one device, with what is beside the tensors."""
        return self.memory.peak + self.overhead

    @property
    def fits(self) -> bool:
        return self.needed <= self.budget.free

    @property
    def seconds(self) -> float | None:
        """Training steps only; evaluation, checkpoints and start-up come on top."""
        return self.work.tokens / self.rate.tokens_per_s if self.work and self.rate else None

    @property
    def advice(self) -> str:
        """One line: what is lacking, and what to change."""
        from services.trainer.plan_report import advice_line

        return advice_line(self)


def plan(
    config: TrainConfig,
    *,
    budget: Budget | None = None,
    devices: int | None = None,
    with_data: bool = True,
    rate: Rate | None = None,
) -> Plan:
    """The plan for `config` on `devices` of what `budget` describes; none: the device and torchrun's processes at hand.

    Raises one of `ERRORS` for a base, data or device that cannot be used.
    """
    base_config = read_base_config(config.base)
    shape = Shape.of(base_config)
    rows = read_rows(config) if with_data else []
    budget = budget or find_budget(config.device)
    devices = devices or processes()
    planner = Planner(shape, budget, devices, rows)
    checkpointing = planner.checkpoints(config)
    memory = planner.memory(config, checkpointing)
    overhead = budget.overhead(memory.peak)
    remedy = None
    if memory.peak + overhead > budget.free:
        remedy = advise(config, planner.longest(config), planner.peak, budget.free)
    if rate is None:
        name = budget.name if budget.kind == "cuda" else "cpu"
        rate = rate_of_earlier_run(config, base_config, device=name, devices=devices, checkpointing=checkpointing)
    load = planner.load(config, checkpointing)
    return Plan(
        config=config,
        parameters=shape.parameters + (trainable_parameters(shape, load) if config.method == "lora" else 0),
        trainable=trainable_parameters(shape, load),
        gradient_checkpointing=checkpointing,
        devices=devices,
        micro_batch_tokens=load.tokens,
        memory=memory,
        budget=budget,
        overhead=overhead,
        work=count_work(config, rows, devices) if rows else None,
        rate=rate,
        disk_needed=_disk_needed(config, shape, load),
        disk_free=_disk_free(config.out),
        remedy=remedy,
    )


def read_base_config(folder: Path) -> dict[str, Any]:
    """config.json of a Qwen3 model; its weights need not be there. Raises `ModelError`."""
    try:
        config = read_json((folder / "config.json").resolve())
    except AdapterError as error:
        raise ModelError(f"cannot plan for the base model at {folder}: {error}. Set base to its directory") from error
    if config.get("model_type") != "qwen3":
        raise ModelError(f"{folder} is a model of type {config.get('model_type')!r}: only qwen3 is trained here")
    try:
        Shape.of(config)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder}/config.json lacks a size, or has one that is no number: {error}") from error
    return config


def _disk_needed(config: TrainConfig, shape: Shape, load: Load) -> int:
    """Checkpoints that are there at one time (the kept, the best, the one that is written), and the result in bf16."""
    trained = trainable_parameters(shape, load)
    checkpoint = trained * (load.trained_bytes + 2 * load.moment_bytes)
    return (config.keep_checkpoints + 2) * checkpoint + 2 * trained


def _disk_free(folder: Path) -> int:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="YAML file of settings (default: none, only defaults)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one setting; wins over --config"
    )
    parser.add_argument("--memory-gb", type=float, help="plan for a device with so much memory (default: the one here)")
    parser.add_argument("--devices", type=int, help="processes of torchrun, one a device (default: 1)")
    parser.add_argument("--no-data", action="store_true", help="without a data set: memory only, no steps")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--tokens-per-second", type=float, help="a measured speed, over all devices")
    speed.add_argument(
        "--probe", action="store_true", help="measure the speed with a few micro-batches on random weights"
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """0 when the run fits, 1 when it does not, 2 with one line for what is wrong with the input."""
    try:
        made = _plan_of(args)
    except ERRORS as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    if is_first_process():
        from services.trainer.plan_report import plan_json, plan_text

        print(json.dumps(plan_json(made), indent=1, ensure_ascii=False) if args.json else plan_text(made))
    return 0 if made.fits else 1


def _plan_of(args: argparse.Namespace) -> Plan:
    config = read_config(args.config, args.set)
    if args.devices is not None and args.devices < 1:
        raise DeviceError("--devices must be 1 or more")
    if args.tokens_per_second is not None and args.tokens_per_second <= 0:
        raise DeviceError("--tokens-per-second must be above 0")
    rate = Rate(args.tokens_per_second, "given") if args.tokens_per_second else None
    budget = find_budget(config.device, args.memory_gb)
    made = plan(config, budget=budget, devices=args.devices, with_data=not args.no_data, rate=rate)
    if args.probe and made.fits:
        from services.trainer.probe import probe

        rate = probe(made)
        made = plan(config, budget=budget, devices=args.devices, with_data=not args.no_data, rate=rate)
    return made
