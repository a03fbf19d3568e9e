"""A checked job to its result: model, trainer, training, export, record. Needs torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import TrainingArguments

from services.trainer import checkpoint
from services.trainer.callbacks import METRIC, MetricsFile, Pace, ProgressLine, has_converged
from services.trainer.config import TrainConfig
from services.trainer.errors import TrainError
from services.trainer.model import (
    Counts,
    attach,
    autocasts,
    can_compile,
    compile_layers,
    count_parameters,
    load_base,
)
from services.trainer.optimizer import StochasticAdamW
from services.trainer.packing import Schedule, make_schedule
from services.trainer.reporters import make_reporters
from services.trainer.rows import supervised_tokens
from services.trainer.run_files import RunFiles
from services.trainer.run_record import (
    CHECKPOINTS,
    METRICS,
    is_first_process,
    processes,
)
from services.trainer.sharding import shard
from services.trainer.supervised import SupervisedTrainer
from services.trainer.train import Job

TOLD_TO_STOP = 3

# Tokens of a run from which compiling its layers pays for itself on an H100; slower GPUs gain more from each token.
COMPILES_FROM = 4_000_000


def fit(job: Job) -> int:
    """Trains, exports the best checkpoint and writes the record; returns the exit status. Raises `TrainError`."""
    config = job.config
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = pick_device(config.device)
    check_precision(config.precision, device)
    schedule = schedule_of(job)
    pace = Pace(
        schedule,
        eval_every=config.eval_every,
        save_every=config.save_every,
        patience=config.patience,
        has_eval=bool(job.eval_rows),
    )
    with _one_line_errors(config):
        arguments = training_arguments(config, schedule, device, job)
        model = attach(load_base(config, device), config)
        if can_compile(device) and processes() == 1 and _tokens_of(job, schedule) >= COMPILES_FROM:
            compile_layers(model)
        counts = count_parameters(model)
        _announce(job, schedule, counts, device)
        trainer = make_trainer(job, schedule, model, arguments, pace)
        record = RunFiles(job, counts, schedule, device)
        if is_first_process():
            record.begin()
        try:
            with pace.listening() if processes() == 1 else contextlib.nullcontext():
                state = _train(job, trainer, schedule)
        except BaseException as error:
            if is_first_process():
                record.fail(error)
            raise
        if is_first_process():
            record.end(state, pace.told_to_stop is not None)
    return TOLD_TO_STOP if pace.told_to_stop is not None else 0


def pick_device(setting: str) -> str:
    """`cuda` or `cpu`; that a GPU is there where one is asked for, the planner has seen."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if setting == "auto" else setting


def check_precision(precision: str, device: str) -> None:
    """Raises `TrainError` for bf16 on a GPU that would emulate it."""
    if device == "cuda" and precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        raise TrainError(f"{torch.cuda.get_device_name()} has no bf16: set precision=fp32, or train on a newer GPU")


def schedule_of(job: Job) -> Schedule:
    config = job.config
    return make_schedule(
        [len(row) for row in job.rows],
        batch_tokens=config.batch_tokens if config.packing else None,
        batch_rows=config.batch_size,
        accumulation=config.gradient_accumulation,
        processes=processes(),
        epochs=config.epochs,
        max_steps=config.max_steps,
        seed=config.seed,
    )


def _tokens_of(job: Job, schedule: Schedule) -> int:
    return sum(len(job.rows[row]) for pack in schedule.packs for row in pack)


def training_arguments(config: TrainConfig, schedule: Schedule, device: str, job: Job) -> Any:
    """Starts the process group where torchrun made several processes. When to evaluate and save is `Pace`'s."""
    arguments = TrainingArguments(
        output_dir=str(config.out / CHECKPOINTS),
        max_steps=schedule.steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=config.gradient_accumulation,
        gradient_checkpointing=job.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup" if config.scheduler == "constant" else config.scheduler,
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        logging_steps=1,
        logging_nan_inf_filter=False,  # it looks at the loss after each micro-batch, which waits for the GPU
        eval_strategy="no",
        eval_on_start=bool(job.eval_rows) and job.resume is None,
        save_strategy="steps",
        save_steps=schedule.steps + 1,
        save_total_limit=config.keep_checkpoints + 1,
        metric_for_best_model=METRIC if job.eval_rows else None,
        greater_is_better=False,
        seed=config.seed,
        use_cpu=device == "cpu",
        ddp_backend="gloo" if device == "cpu" and processes() > 1 else None,
        ddp_find_unused_parameters=False,
        report_to="none",  # `reporters` are ours
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
    )
    arguments.n_gpu  # noqa: B018  finds the devices; then: one process, one device, never DataParallel
    arguments._n_gpu = min(arguments._n_gpu, 1)
    return arguments


def make_trainer(job: Job, schedule: Schedule, model: Any, arguments: Any, pace: Pace) -> SupervisedTrainer:
    config = job.config
    options: dict[str, Any] = {}
    if config.method == "full" and config.weights_dtype == "bf16":
        options["optimizer_cls_and_kwargs"] = (StochasticAdamW, {"lr": config.learning_rate})
    if config.method == "full" and processes() > 1:
        options["sharded"] = shard(model, arguments.device.type, processes(), autocasts(config))
    trainer = SupervisedTrainer(
        rows=job.rows,
        eval_rows=job.eval_rows,
        schedule=schedule,
        batch_tokens=config.batch_tokens if config.packing else None,
        batch_rows=config.batch_size,
        think_weight=config.think_loss_weight,
        autocast=autocasts(config) and "sharded" not in options,
        seal=job.inputs,
        model=model,
        args=arguments,
        callbacks=[pace, MetricsFile(config.out / METRICS), ProgressLine(), *make_reporters(config)],
        **options,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _train(job: Job, trainer: SupervisedTrainer, schedule: Schedule) -> Any:
    """The trainer's state after training; a run that had already ended is left as it is."""
    if job.resume is None:
        trainer.train()
        return trainer.state
    state = transformers.TrainerState.load_from_json(str(job.resume / checkpoint.STATE))
    if is_first_process():
        checkpoint.discard_after(job.config.out / METRICS, state.global_step)
    if state.global_step >= schedule.steps or has_converged(state.log_history, job.config.patience):
        return state
    trainer.train(resume_from_checkpoint=str(job.resume))
    return trainer.state


def _announce(job: Job, schedule: Schedule, counts: Counts, device: str) -> None:
    if not is_first_process():
        return
    lines = [
        str(counts),
        f"{len(job.rows)} rows, {sum(map(len, job.rows)):,} tokens of which {supervised_tokens(job.rows):,} are learned; "
        f"{schedule.steps} steps on {processes()} x {device}",
    ]
    if not job.eval_rows:
        lines.append("no held-out rows: the last checkpoint is kept, not the best; give `prepare` a share for them")
    if schedule.epoch_ends[0] < 4 and job.config.max_steps is None:
        lines.append(
            f"optimizer steps in an epoch: {schedule.epoch_ends[0]}. Lower batch_tokens or gradient_accumulation for more"
        )
    print("\n".join(lines), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _one_line_errors(config: TrainConfig) -> Iterator[None]:
    """Errors of the machine as `TrainError`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainError(
            "the GPU's memory is full: lower batch_tokens, or set gradient_checkpointing=on, and ask `plan` first"
        ) from error
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise TrainError(
            f"the run's files in {config.out} cannot be written or read ({error.strerror or error}{where}): "
            "mend that, then --resume"
        ) from error
    except (SafetensorError, RuntimeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, SafetensorError) or "PytorchStreamWriter" in text or "unexpected pos" in text:
            raise TrainError(f"cannot write to {config.out} ({text}): mend that, then --resume") from error
        raise
