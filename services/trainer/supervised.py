"""Hugging Face's `Trainer` with what it lacks here: packs in a fixed order, losses per token, think and answer apart.

Its loop, optimizer, learning-rate schedule, DDP and FSDP wrapping, and resuming are used as they are. Overridden are
 - batches: the schedule's packs in their order, in this process's share, instead of a sampler of equal-sized batches
 - the loss: sums over tokens divided by the weight of all supervised tokens of the global batch, not a mean of means
 - evaluation: sums over all rows, for thinking and answers apart
 - checkpoints: adapters and weights without the hub look-ups and model cards of `save_pretrained`, sealed when complete
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer

from services.trainer import checkpoint, sharding
from services.trainer.batch import RowTensors, make_batch, row_tensors
from services.trainer.loss_sums import LossSums
from services.trainer.packing import Pack, Schedule, evaluation_packs
from services.trainer.rows import TrainingRow
from services.trainer.saved_weights import read_weights, trained_weights
from services.trainer.sharding import Sharded


class PackedRows(Dataset):  # type: ignore[misc]  # torch is untyped here
    """Rows by pack."""

    def __init__(self, rows: Sequence[TrainingRow]) -> None:
        self.rows = [row_tensors(row) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, pack: Pack) -> list[RowTensors]:
        return [self.rows[i] for i in pack]


class SupervisedTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """Trains a `TrainingQwen3`, or an adapter on one, on a schedule of packs."""

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the whole step's tokens

    def __init__(
        self,
        *,
        rows: Sequence[TrainingRow],
        eval_rows: Sequence[TrainingRow],
        schedule: Schedule,
        batch_tokens: int | None,
        batch_rows: int,
        think_weight: float,
        autocast: bool,
        seal: dict[str, Any],
        sharded: Sharded | None = None,
        **options: Any,
    ) -> None:
        """`batch_tokens` none: padded batches of `batch_rows` rows. `seal`: what a resumed run must share (`checkpoint`).
        `sharded`: the model as `sharding.shard` returned it, where it was."""
        super().__init__(train_dataset=PackedRows(rows), **options)
        self.model_accepts_loss_kwargs = True  # transformers before 5.18 asks this instead of `loss_is_scaled_for_ga`
        self._eval_rows, self._schedule = PackedRows(eval_rows), schedule
        self._batch_tokens, self._batch_rows = batch_tokens, batch_rows
        self._think_weight, self._autocast, self._seal = think_weight, autocast, seal
        self._sharded = sharded
        self._train_sums = LossSums(self.args.device)
        self._tokens, self._began = 0, time.monotonic()

    # Batches

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.train_dataset, self._schedule.of_process(self.args.process_index))

    def _loader(self, rows: PackedRows, packs: Sequence[Pack]) -> DataLoader[Any]:
        # A generator of its own: a loader without one draws from the global one each time it is started, which a
        # resumed run does not do at the same places.
        return DataLoader(
            rows,
            batch_sampler=[[pack] for pack in packs],
            collate_fn=lambda found: make_batch(found[0], self._batch_tokens is not None, self._think_weight),
            pin_memory=self.args.device.type == "cuda",
            generator=torch.Generator(),
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one step, and the weight of the supervised tokens of all processes' together."""
        self._began = time.monotonic()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        weight = torch.stack([batch["weights"].double().sum() for batch in batches]).sum().to(device)
        self._tokens += sum(batch["tokens"] for batch in batches)
        return batches, self.accelerator.reduce(weight, reduction="sum")

    # Loss

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        device = self.args.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self._autocast, cache_enabled=cache_enabled)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """DDP and FSDP average gradients over processes, so each counts its part of the sum that many times."""
        outputs = model(**inputs)
        self._train_sums.add(outputs["losses"], inputs)
        loss = outputs["loss"] * (self.args.world_size / num_items_in_batch).to(outputs["loss"].dtype)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts of the loss and the speed since the last entry, over all processes."""
        if "loss" in logs:
            seconds = time.monotonic() - self._began
            tokens = torch.tensor(float(self._tokens), dtype=torch.float64, device=self.args.device)
            sums = self.accelerator.reduce(torch.cat([self._train_sums.sums, tokens[None]]), reduction="sum")
            logs |= self._train_sums.means(sums[:5], self._think_weight)
            logs["tokens_per_s"] = round(sums[5].item() / max(seconds, 1e-9), 1)
            self._train_sums, self._tokens = LossSums(self.args.device), 0
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # would be estimated from `input_ids` with the padding; `plan` knows better

    # Evaluation

    def evaluate(self, *_args: Any, **_options: Any) -> dict[str, float]:
        model = self.model_wrapped
        lengths = [len(row) for row in self._eval_rows.rows]
        packs = evaluation_packs(lengths, self._batch_tokens, self._batch_rows, self.args.world_size)
        own = packs[self.args.process_index :: self.args.world_size]
        sums = LossSums(self.args.device)
        model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in self._loader(self._eval_rows, own):
                batch = self._prepare_inputs(batch)
                sums.add(model(**batch)["losses"], batch)
        model.train()
        means = sums.means(self.accelerator.reduce(sums.sums, reduction="sum"), self._think_weight)
        metrics = {f"eval_{name}": value for name, value in means.items()}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Sharding

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        return self._sharded or super()._wrap_model(model, training, dataloader)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        state = None if self._sharded is None else sharding.gather(self.model, keep=self.args.should_save)
        if self.args.should_save:
            trained_weights(self.model, state).write(Path(output_dir or self.args.output_dir))
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoint.seal(folder, self._seal)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        read = read_weights if self._sharded is None else sharding.scatter
        read(self.model, Path(resume_from_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._sharded is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        sharding.save_optimizer(self.optimizer, sharding.optimizer_file(Path(output_dir), self.args.process_index))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._sharded is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        sharding.load_optimizer(self.optimizer, sharding.optimizer_file(Path(checkpoint), self.args.process_index))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))
