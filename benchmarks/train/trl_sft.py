"""TRL's `SFTTrainer` with Liger's kernels, as its documentation says for fast training. Needs torch, trl and liger-kernel."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler

from benchmarks.train.modes import ACCUMULATION, BATCH, Mode
from benchmarks.train.plain import lora_config, step_tokens
from benchmarks.train.rows import PlainRow
from benchmarks.train.stopwatch import Stopwatch

PACKED_ROWS, PACKS = 4, 4  # as ours: packs as long as four of the longest rows, four of them a step


def run_trl(model: Path, mode: Mode, rows: Sequence[PlainRow], out: Path, packed: bool) -> tuple[Stopwatch, Any]:
    """Trains on all rows once. Checkpointing is TRL's default where memory is measured, and off where speed is."""
    from transformers import AutoModelForCausalLM

    datasets, trl = importlib.import_module("datasets"), importlib.import_module("trl")  # on few machines

    # Names for datasets' cache, which is not used here: it pickles tables for them, and cannot (datasets 5.2, pyarrow 26).
    datasets.fingerprint.Hasher.hash = classmethod(lambda _cls, _value: uuid.uuid4().hex)
    watch, longest = Stopwatch(), max(len(row) for row in rows)
    arguments = trl.SFTConfig(
        output_dir=str(out),
        per_device_train_batch_size=1 if packed else BATCH,
        gradient_accumulation_steps=PACKS if packed else ACCUMULATION,
        num_train_epochs=1,
        max_length=PACKED_ROWS * longest if packed else longest,
        packing=packed,
        bf16=True,
        gradient_checkpointing=mode.measures_memory,
        use_liger_kernel=torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    data = datasets.Dataset.from_dict({"input_ids": [row.ids for row in rows], "labels": [row.labels for row in rows]})
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype="auto"),
        args=arguments,
        train_dataset=data,
        peft_config=lora_config(mode),
        callbacks=[watch],
    )
    trainer._get_train_sampler = lambda *_args, **_options: SequentialSampler(trainer.train_dataset)
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    trainer.train()
    if packed:
        return watch, [sum(lengths[i : i + PACKS]) for i in range(0, len(lengths), PACKS)]
    return watch, step_tokens(lengths)
