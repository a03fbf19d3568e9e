"""What a run goes through: rows, steps and tokens, from the prepared data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.trainer.config import TrainConfig
from services.trainer.dataset import DatasetError, PreparedRow, read_prepared
from services.trainer.packing import make_schedule


@dataclass(frozen=True)
class Work:
    """What a run goes through: optimizer steps, and tokens over all epochs. `rows` and `supervised` are an epoch's."""

    rows: int
    longest: int
    epoch_tokens: int
    supervised: int
    steps: int
    tokens: int


def read_rows(config: TrainConfig) -> list[PreparedRow]:
    """Rows to train on, as `prepare` counted them. Raises `DatasetError` without any, or for one above max_length."""
    rows = read_prepared(config.data).rows.get("train", [])
    if not rows:
        raise DatasetError(f"{config.data} has no rows to train on: run `prepare` with more dialogues")
    too_long = [row.tokens for row in rows if row.tokens > config.max_length]
    if too_long:
        raise DatasetError(
            f"{len(too_long)} rows are longer than max_length {config.max_length}, the longest has {max(too_long)} tokens: "
            "raise max_length, or run `prepare` with the smaller one"
        )
    return rows


def count_work(config: TrainConfig, rows: Sequence[PreparedRow], devices: int) -> Work:
    """By the schedule that `train` will follow."""
    lengths = [row.tokens for row in rows]
    schedule = make_schedule(
        lengths,
        batch_tokens=config.batch_tokens if config.packing else None,
        batch_rows=config.batch_size,
        accumulation=config.gradient_accumulation,
        processes=devices,
        epochs=config.epochs,
        max_steps=config.max_steps,
        seed=config.seed,
    )
    return Work(
        rows=len(rows),
        longest=max(lengths),
        epoch_tokens=sum(lengths),
        supervised=sum(row.supervised for row in rows),
        steps=schedule.steps,
        tokens=sum(lengths[row] for pack in schedule.packs for row in pack),
    )
