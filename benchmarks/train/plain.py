"""The article's recipe as it prints it: `Trainer`, `per_device_train_batch_size=4`, 8 micro-batches a step. Needs torch.

Where the article leaves something out, the reader's likely choice that costs least: weights as transformers loads them
(bf16), labels on the reply alone, rows padded to the longest of their batch. It prints `fp16=True`, which is refused or
turns to NaN with Qwen3's bf16 weights: here it is `bf16=True`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from benchmarks.train.modes import ACCUMULATION, BATCH, Mode
from benchmarks.train.rows import PlainRow
from benchmarks.train.stopwatch import Stopwatch
from services.trainer.config import PRESETS
from services.trainer.encode import IGNORED


class _InOrder(Trainer):  # type: ignore[misc]  # transformers is untyped here
    def _get_train_sampler(self, *_args: Any, **_options: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def run_plain(
    model: Path, mode: Mode, rows: Sequence[PlainRow], out: Path, pad_to: int | None
) -> tuple[Stopwatch, Any]:
    """Trains on all rows once; returns the watch and the tokens of each step. `pad_to` none: the batch's longest."""
    watch = Stopwatch()
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        learning_rate=2e-5,
        num_train_epochs=1,
        bf16=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    trainer = _InOrder(
        model=with_adapter(AutoModelForCausalLM.from_pretrained(model, dtype="auto"), mode),
        args=arguments,
        train_dataset=[{"input_ids": row.ids, "labels": row.labels} for row in rows],
        data_collator=_padded(pad_to),
        callbacks=[watch],
    )
    trainer.train()
    return watch, step_tokens([len(row) for row in rows])


def with_adapter(model: Any, mode: Mode) -> Any:
    """As the article's `LoraConfig`, with the preset's numbers; the model itself for a full fine-tune."""
    return model if mode.preset is None else _peft_model(model, lora_config(mode))


def lora_config(mode: Mode) -> Any:
    """None for a full fine-tune."""
    from peft import LoraConfig

    if mode.preset is None:
        return None
    preset = PRESETS[mode.preset]
    return LoraConfig(
        r=preset["rank"],
        lora_alpha=preset["alpha"],
        lora_dropout=preset["dropout"],
        target_modules=list(preset["targets"]),
        bias="none",
        task_type="CAUSAL_LM",
    )


def step_tokens(lengths: Sequence[int]) -> list[int]:
    """Of each optimizer step of rows in their order."""
    rows = BATCH * ACCUMULATION
    return [sum(lengths[i : i + rows]) for i in range(0, len(lengths), rows)]


def _peft_model(model: Any, config: Any) -> Any:
    from peft import get_peft_model

    return get_peft_model(model, config)


def _padded(pad_to: int | None) -> Callable[[list[dict[str, list[int]]]], dict[str, torch.Tensor]]:
    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = pad_to or max(len(row["input_ids"]) for row in rows)

        def column(name: str, fill: int) -> torch.Tensor:
            return torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in rows])

        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
        return {"input_ids": column("input_ids", 0), "labels": column("labels", IGNORED), "attention_mask": mask}

    return collate
