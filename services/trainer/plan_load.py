"""A config's meaning in terms of `memory.Load`: which types the trainer keeps what in, on which device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from services.trainer.config import TrainConfig
from services.trainer.dataset import PreparedRow
from services.trainer.device_memory import Budget
from services.trainer.memory import Load, Memory, Shape, measure_memory

_BYTES = {"bf16": 2, "fp32": 4}
_MOST_LOGITS = 40_000_000  # `loss.MOST_LOGITS`; a test holds them together, since that module needs torch


def loss_positions(vocabulary: int, most: int) -> int:
    """Positions of one chunk of the loss, as `loss.chunk_positions` decides it."""
    return max(1, min(most, _MOST_LOGITS // vocabulary))


def make_load(
    config: TrainConfig, shape: Shape, *, device: Literal["cuda", "cpu"], tokens: int, checkpointing: bool, devices: int
) -> Load:
    """`tokens` of the largest micro-batch on one device, padding included."""
    compute = _BYTES[config.precision]
    chunk = loss_positions(shape.vocabulary, config.loss_chunk)
    copies_attention = config.attention == "sdpa" or (config.attention == "auto" and device == "cpu")
    accumulates = config.gradient_accumulation > 1
    if config.method == "full":
        weights = _BYTES[config.weights_dtype]
        return Load(
            method="full",
            tokens=tokens,
            chunk=chunk,
            base_bytes=weights,
            stream_bytes=weights,
            inner_bytes=compute,
            trained_bytes=weights,
            moment_bytes=weights,
            autocast=weights != compute,
            checkpointing=checkpointing,
            accumulates=accumulates,
            copies_attention=copies_attention,
            shards=devices,
        )
    casts = config.weights_dtype == "fp32" and compute == 2
    dropped = 4 if casts else compute
    return Load(
        method="lora",
        tokens=tokens,
        chunk=chunk,
        base_bytes=compute,
        stream_bytes=compute,
        inner_bytes=compute,
        trained_bytes=4,
        moment_bytes=4,
        autocast=compute == 2 and not casts,
        checkpointing=checkpointing,
        accumulates=accumulates,
        copies_attention=copies_attention,
        rank=config.rank,
        targets=config.targets,
        dropout=config.dropout,
        mask_bytes=1 if device == "cuda" else dropped,
        adapter_inputs="cast" if casts else "shared",
    )


@dataclass(frozen=True)
class Planner:
    """Memory of any config on one device, with the same data."""

    shape: Shape
    budget: Budget
    devices: int
    rows: Sequence[PreparedRow]

    def longest(self, config: TrainConfig) -> int:
        return min(config.max_length, max((row.tokens for row in self.rows), default=config.max_length))

    def load(self, config: TrainConfig, checkpointing: bool) -> Load:
        """A pack is full, or all there is; a padded batch has its longest rows together some time."""
        if config.packing:
            tokens = min(config.batch_tokens, sum(row.tokens for row in self.rows) or config.batch_tokens)
        else:
            tokens = min(config.batch_size, len(self.rows) or config.batch_size) * self.longest(config)
        return make_load(
            config,
            self.shape,
            device=self.budget.kind,
            tokens=tokens,
            checkpointing=checkpointing,
            devices=self.devices,
        )

    def memory(self, config: TrainConfig, checkpointing: bool) -> Memory:
        return measure_memory(self.shape, self.load(config, checkpointing))

    def checkpoints(self, config: TrainConfig) -> bool:
        """`gradient_checkpointing` with auto resolved: on when the run does not fit without, and needs less with."""
        if config.gradient_checkpointing != "auto":
            return config.gradient_checkpointing == "on"
        without, with_it = self._needed(config, False), self._needed(config, True)
        return without > self.budget.free and with_it < without

    def peak(self, config: TrainConfig) -> int:
        return self._needed(config, self.checkpoints(config))

    def _needed(self, config: TrainConfig, checkpointing: bool) -> int:
        tensors = self.memory(config, checkpointing).peak
        return tensors + self.budget.overhead(tensors)
