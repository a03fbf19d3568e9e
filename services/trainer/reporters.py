"""TensorBoard and SwanLab, for those who want more than metrics.jsonl. Each package is imported only where it is asked for.

By own callbacks: transformers' for SwanLab needs an older SwanLab than there is (5.19 against 0.10), and its TensorBoard one
is told its folder by an environment variable.
"""

from __future__ import annotations

import abc
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from services.trainer.config import TrainConfig


class Reporter(TrainerCallback, abc.ABC):  # type: ignore[misc]  # transformers is untyped here
    """Hands each entry's numbers to a package, in the first process alone."""

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            self.write({f"eval/{k[5:]}" if k.startswith("eval_") else f"train/{k}": v for k, v in logs.items()}, state)

    def on_train_end(self, _args: Any, state: Any, _control: Any, **_options: Any) -> None:
        if state.is_world_process_zero:
            self.close()

    @abc.abstractmethod
    def write(self, numbers: dict[str, float], state: Any) -> None:
        """Takes one entry, `train/…` and `eval/…` apart."""

    @abc.abstractmethod
    def close(self) -> None:
        """Called once, after the last entry."""


class TensorBoard(Reporter):
    """Event files in a folder; `tensorboard --logdir` shows them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def write(self, numbers: dict[str, float], state: Any) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(log_dir=str(self.folder))
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, state.global_step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class SwanLab(Reporter):
    """A SwanLab run; nothing leaves the machine unless SWANLAB_MODE says so."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self._package: Any = None

    def write(self, numbers: dict[str, float], state: Any) -> None:
        if self._package is None:
            swanlab = importlib.import_module("swanlab")
            folder = self.config.out / "swanlab"
            folder.mkdir(parents=True, exist_ok=True)
            mode = os.environ.get("SWANLAB_MODE", "offline")
            swanlab.init(project="medthink", mode=mode, logdir=str(folder), config=self.config.as_dict())
            self._package = swanlab
        self._package.log(numbers, step=state.global_step)

    def close(self) -> None:
        if self._package is not None:
            self._package.finish()


def make_reporters(config: TrainConfig) -> list[Reporter]:
    """Those that `report_to` names; `train` has seen that their packages are installed."""
    makers: dict[str, Callable[[TrainConfig], Reporter]] = {
        "tensorboard": lambda config: TensorBoard(config.out / "tensorboard"),
        "swanlab": SwanLab,
    }
    return [makers[name](config) for name in config.report_to]
