"""What happens between steps: when to evaluate, save and stop; metrics.jsonl; the line that shows how far training is."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from services.trainer.errors import TrainError
from services.trainer.packing import Schedule

METRIC = "eval_answer_loss"


def has_converged(history: list[dict[str, Any]], patience: int) -> bool:
    """Whether the last `patience` evaluations brought no better answer loss. Decided from the trainer's own history, which
    checkpoints hold, so that a resumed run stops where an uninterrupted one does. The one before training does not count."""
    losses = [entry[METRIC] for entry in history if METRIC in entry and entry["step"] > 0]
    return bool(patience and losses) and len(losses) - 1 - losses.index(min(losses)) >= patience


class Pace(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Evaluates every `eval_every` steps, or at the end of each epoch, and after the last step; saves each time.

    A run of one process that is told to stop (SIGTERM, Ctrl-C) ends after its step, with a checkpoint.
    """

    def __init__(
        self, schedule: Schedule, *, eval_every: int | None, save_every: int | None, patience: int, has_eval: bool
    ) -> None:
        self.schedule, self.save_every, self.patience, self.has_eval = schedule, save_every, patience, has_eval
        every = range(eval_every, schedule.steps, eval_every) if eval_every else schedule.epoch_ends
        self.pauses = {*every, schedule.steps}
        self.told_to_stop: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While training; afterwards the signals do what they did before."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: Any) -> None:
        if self.told_to_stop is not None:  # a second time: at once
            raise KeyboardInterrupt
        self.told_to_stop = number

    def on_step_end(self, _args: Any, state: Any, control: Any, **_options: Any) -> None:
        step = state.global_step
        state.epoch = self.schedule.epoch_at(step)  # Trainer sees one long epoch
        control.should_evaluate = self.has_eval and step in self.pauses
        control.should_save = step in self.pauses or bool(self.save_every and step % self.save_every == 0)
        if self.told_to_stop is not None and step < self.schedule.steps:
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, _args: Any, state: Any, control: Any, **_options: Any) -> None:
        if has_converged(state.log_history, self.patience):
            control.should_training_stop = True


class MetricsFile(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """One JSON object a line for each step and each evaluation, written by the first process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise TrainError(
                f"the loss of step {state.global_step} is {loss}: lower learning_rate, or look for a broken base model"
            )
        if state.is_world_process_zero and logs:
            entry = {"step": state.global_step, **logs, "time": round(time.time(), 3)}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


class ProgressLine(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """A bar with the losses on a terminal, elsewhere a line every half minute; a line for each evaluation."""

    def __init__(self, pause_s: float = 30.0) -> None:
        self.pause_s = pause_s
        self._bar: Any = None
        self._last = 0.0

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_options: Any) -> None:
        if state.is_world_process_zero:
            self._last = time.monotonic()
            quiet = not sys.stderr.isatty()
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit=" steps", disable=quiet)

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self._bar is None or not logs:
            return
        losses = {name: logs[name] for name in ("think_loss", "answer_loss") if name in logs}
        if METRIC in logs:
            parts = (("think", "eval_think_loss"), ("answer", METRIC))
            text = ", ".join(f"{name} {logs[key]:.4f}" for name, key in parts if key in logs)
            self._say(f"step {state.global_step}, epoch {state.epoch or 0:.2f}: held-out losses {text}")
        elif "loss" in logs and self._bar.disable:
            if time.monotonic() - self._last >= self.pause_s:
                self._last = time.monotonic()
                text = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
                self._say(f"step {state.global_step} of {state.max_steps}: {text}")
        elif "loss" in logs:
            self._bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()}, refresh=False)
            self._bar.update(state.global_step - self._bar.n)

    def on_train_end(self, *_args: Any, **_options: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def _say(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)
