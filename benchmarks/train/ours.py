"""Our recipe: the very functions that `python -m services.trainer train` calls, without its files. Needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.train.modes import Mode
from benchmarks.train.rows import PlainRow
from benchmarks.train.stopwatch import Stopwatch
from services.trainer.base_model import check_base
from services.trainer.callbacks import Pace
from services.trainer.config import make_config
from services.trainer.dataset import Card, Prepared
from services.trainer.encode import Row
from services.trainer.loop import make_trainer, pick_device, schedule_of, training_arguments
from services.trainer.model import attach, can_compile, compile_layers, load_base
from services.trainer.plan import plan
from services.trainer.rows import TrainingRow, load_chat_format
from services.trainer.train import Job


class _NoPauses(Pace):
    """Neither evaluates nor saves."""

    def on_step_end(self, *_args: Any, **_options: Any) -> None:
        return


def run_ours(model: Path, mode: Mode, rows: Sequence[PlainRow], out: Path, compiled: bool) -> tuple[Stopwatch, Any]:
    """Trains on all rows once; returns the watch and the tokens of each step."""
    longest = max(len(row) for row in rows)
    pack = {"max_length": longest, "batch_tokens": 4 * longest}  # 8192, where the longest are 2048
    config = make_config(mode.settings() | pack | {"base": model, "out": out, "epochs": 1.0})
    made = plan(config, with_data=False)
    job = Job(
        config=config,
        base_config=check_base(model),
        chat_format=load_chat_format(model),
        data=_no_data(out),
        rows=[TrainingRow(Row(row.ids, row.labels), row.answer) for row in rows],
        eval_rows=[],
        inputs={},
        gradient_checkpointing=made.gradient_checkpointing,
        resume=None,
    )
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    device = pick_device(config.device)
    schedule = schedule_of(job)
    arguments = training_arguments(config, schedule, device, job)
    trained = attach(load_base(config, device), config)
    if compiled and can_compile(device):
        compile_layers(trained)
    pace = _NoPauses(schedule, eval_every=None, save_every=None, patience=0, has_eval=False)
    trainer = make_trainer(job, schedule, trained, arguments, pace)
    watch = Stopwatch()
    trainer.add_callback(watch)
    trainer.train()
    size = schedule.accumulation
    packs = [sum(len(rows[i]) for i in pack) for pack in schedule.packs]
    return watch, [sum(packs[i : i + size]) for i in range(0, len(packs), size)]


def _no_data(folder: Path) -> Prepared:
    """A data set is read only for the files of a run, which are not written here."""
    fields: dict[str, Any] = {"system_prompt": ""}
    return Prepared(folder, Card.model_construct(**fields), {})
