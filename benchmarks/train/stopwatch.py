"""Speed and memory of a run inside Hugging Face's `Trainer`, which all recipes are. Needs torch."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback


class Stopwatch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Notes when each optimizer step was over, its loss read: with `logging_steps=1` that waits for the GPU."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())
            self.losses.append(float(logs["loss"]))

    def measured(self, tokens: Sequence[int], warm_up: int) -> dict[str, Any]:
        """Figures of the run. `tokens`: of each step, padding not counted; the first `warm_up` steps are not timed."""
        if len(self.ends) != len(tokens):
            raise RuntimeError(f"{len(tokens)} steps were planned and {len(self.ends)} seen")
        if len(self.ends) <= warm_up:
            raise RuntimeError(f"{len(self.ends)} steps are too few to time any after {warm_up} of warm-up")
        seconds = self.ends[-1] - self.ends[warm_up - 1]
        paces = [
            round(tokens[i] / (self.ends[i] - self.ends[i - 1]), 1) for i in range(1, len(self.ends))
        ]  # shows where a step stalled
        return {
            "tokens_per_s": sum(tokens[warm_up:]) / seconds,
            "steps": len(tokens),
            "timed_tokens": sum(tokens[warm_up:]),
            "timed_seconds": seconds,
            "tokens_per_s_by_step": paces,
            "first_loss": self.losses[0],
            "last_loss": self.losses[-1],
            **peaks(),
        }


def peaks() -> dict[str, int]:
    """Bytes, over the whole process."""
    if torch.cuda.is_available():
        return {"peak_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}
    return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
