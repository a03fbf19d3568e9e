"""What a run leaves in its folder: the record when it begins, the result and the record when it ends. Needs torch."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from services.trainer.base_model import base_id
from services.trainer.callbacks import METRIC
from services.trainer.export import export_adapter, export_model
from services.trainer.model import Counts
from services.trainer.packing import Schedule
from services.trainer.rows import supervised_tokens
from services.trainer.run_record import (
    CHECKPOINTS,
    CONFIG,
    SCHEMA_VERSION,
    TRAINER_VERSION,
    git_commit,
    processes,
    versions,
    write_record,
)
from services.trainer.train import Job


@dataclass
class RunFiles:
    """run.json, at the begin and at the end."""

    job: Job
    counts: Counts
    schedule: Schedule
    device: str
    began: float = 0.0

    def begin(self) -> None:
        self.began = time.time()
        out = self.job.config.out
        (out / CONFIG).write_text(self.job.config.as_yaml(), encoding="utf-8")
        write_record(out, self._common() | {"status": "running"})

    def fail(self, error: BaseException) -> None:
        line = (str(error).splitlines() or [type(error).__name__])[0][:500]
        with contextlib.suppress(OSError):  # the disk may be what failed
            write_record(self.job.config.out, self._common() | {"status": "failed", "error": line})

    def end(self, state: Any, told_to_stop: bool) -> None:
        """Exports, unless the run was told to stop before its end."""
        config, out = self.job.config, self.job.config.out
        best = state.best_global_step or state.global_step
        metrics = _metrics(state, best)
        if told_to_stop:
            write_record(out, self._common() | {"status": "stopped", "metrics": metrics})
            print(f"stopped after step {state.global_step}: go on with --resume", file=sys.stderr)
            return
        folder = out / CHECKPOINTS / f"checkpoint-{best}"
        if not folder.is_dir() and self.job.resume is not None:
            folder = self.job.resume.parent / folder.name
        if config.method == "lora":
            result = export_adapter(folder, out, base_id(config.base), self.job.base_config)
        else:
            result = export_model(folder, out, config.base, self.job.base_config)
        status = "finished" if state.global_step >= self.schedule.steps else "converged"
        write_record(out, self._common() | {"status": status, "result": result.name, "metrics": metrics})
        print(f"{status} after step {state.global_step}; step {best} is in {result}", file=sys.stderr)

    def _common(self) -> dict[str, Any]:
        job, config = self.job, self.job.config
        inputs = ("data_sha256", "base_config_sha256", "chat_format_sha256")
        return {
            "schema_version": SCHEMA_VERSION,
            "trainer_version": TRAINER_VERSION,
            "base": base_id(config.base),
            **{name: job.inputs[name] for name in inputs},
            "system_prompt": job.system_prompt,
            "config": config.as_dict(),
            "config_sha256": config.sha256(),
            "seed": config.seed,
            "trainable_parameters": self.counts.trainable,
            "parameters": self.counts.total,
            "rows": len(job.rows),
            "eval_rows": len(job.eval_rows),
            "tokens": sum(map(len, job.rows)),
            "supervised_tokens": supervised_tokens(job.rows),
            "steps": self.schedule.steps,
            "gradient_checkpointing": job.gradient_checkpointing,
            "processes": processes(),
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "peak_gpu_bytes": torch.cuda.max_memory_allocated() if self.device == "cuda" else None,
            "versions": versions(),
            "git_commit": git_commit(),
            "began": self.began,
            "seconds": round(time.time() - self.began, 1),
        }


def _metrics(state: Any, best: int) -> dict[str, Any]:
    """The losses that were measured before training and at the step that is kept; lines of metrics.jsonl have all."""
    history = [entry for entry in state.log_history if METRIC in entry]
    names = ("eval_loss", "eval_think_loss", METRIC)
    metrics: dict[str, Any] = {"steps": state.global_step, "best_step": best}
    for entry in history:
        if entry["step"] == 0:
            metrics |= {f"{name}_before": entry[name] for name in names if name in entry}
        if entry["step"] == best:
            metrics |= {name: entry[name] for name in names if name in entry}
    return metrics
