"""Rows to the tensors of one forward pass. Needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from services.trainer.encode import IGNORED
from services.trainer.rows import TrainingRow


@dataclass(frozen=True)
class RowTensors:
    """One row: `ids` [tokens]; `places` [n] before each supervised id, `targets` [n] those ids, `is_answer` [n]."""

    ids: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor
    is_answer: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)


def row_tensors(row: TrainingRow) -> RowTensors:
    """A row's first id is never a target, whatever its label: in a pack, what comes before it is another row's."""
    supervised = [i for i, label in enumerate(row.row.labels) if label != IGNORED and i > 0]
    places = torch.tensor(supervised, dtype=torch.long) - 1
    ids = torch.tensor(row.row.ids, dtype=torch.long)
    targets = torch.tensor([row.row.labels[i] for i in supervised], dtype=torch.long)
    return RowTensors(ids, places, targets, places + 1 >= row.answer_start)


_EMPTY = RowTensors(
    ids=torch.zeros(1, dtype=torch.long),
    places=torch.zeros(0, dtype=torch.long),
    targets=torch.zeros(0, dtype=torch.long),
    is_answer=torch.zeros(0, dtype=torch.bool),
)


def make_batch(rows: Sequence[RowTensors], packed: bool, think_weight: float) -> dict[str, Any]:
    """What the training model's `forward` takes, and `tokens`, the number without padding.

    `input_ids` and `position_ids` are [1, tokens] when packed, positions from 0 in every row, else [rows, longest row]
    padded on the right with id 0, where no real token looks. `kept` [n] are places in the flat batch after which a
    supervised token comes; `targets`, `weights` and `is_answer` [n] belong to them. Without rows: one token, no target.
    """
    if not rows:
        rows, packed = (_EMPTY,), True
    lengths = tuple(len(row) for row in rows)
    width = max(lengths)
    starts = [sum(lengths[:i]) if packed else i * width for i in range(len(rows))]
    is_answer = torch.cat([row.is_answer for row in rows])
    batch: dict[str, Any] = {
        "tokens": sum(lengths),
        "kept": torch.cat([row.places + start for row, start in zip(rows, starts, strict=True)]),
        "targets": torch.cat([row.targets for row in rows]),
        "weights": torch.where(is_answer, 1.0, think_weight),
        "is_answer": is_answer,
    }
    if packed:
        batch["input_ids"] = torch.cat([row.ids for row in rows])[None]
        batch["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None]
        batch["row_ends"] = torch.tensor([0, *(start + n for start, n in zip(starts, lengths, strict=True))]).int()
        batch["row_lengths"] = lengths
    else:
        batch["input_ids"] = torch.nn.utils.rnn.pad_sequence([row.ids for row in rows], batch_first=True)
        batch["position_ids"] = torch.arange(width)[None].expand(len(rows), width)
    return batch
