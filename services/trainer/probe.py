"""A few micro-batches of a planned run on random weights, to see how fast it goes. Needs torch; reads no weights."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import Qwen3Config

from services.trainer import attention
from services.trainer.base_model import ModelError
from services.trainer.batch import RowTensors, make_batch
from services.trainer.model import DTYPES, TrainingQwen3, attach, autocasts
from services.trainer.throughput import Rate

if TYPE_CHECKING:
    from services.trainer.plan import Plan

_PASSES = {"cuda": 3, "cpu": 1}
_MOST_CPU_TOKENS = 1024  # a CPU's speed does not depend on more, and a pass takes long


def probe(plan: Plan) -> Rate:
    """Speed of forward and backward on one device, times the number of devices: what lies between them is not measured.

    Raises `ModelError` when the device's memory is full in spite of the plan.
    """
    device = plan.budget.kind
    try:
        model, batch = _make_model(plan, device), _make_batch(plan, device)
        _pass(plan, model, batch, device)  # the first compiles kernels and finds algorithms
        seconds = min(_pass(plan, model, batch, device) for _ in range(_PASSES[device]))
    except torch.OutOfMemoryError as error:
        raise ModelError(
            "the GPU's memory was full during the probe: lower batch_tokens, or end what else uses it"
        ) from error
    return Rate(plan.devices * batch["tokens"] / seconds, "a probe on random weights")


def _make_model(plan: Plan, device: str) -> Any:
    config = plan.config
    base = Qwen3Config.from_pretrained(config.base, local_files_only=True)
    chosen = attention.choose(config.attention, device, DTYPES[config.precision])
    base._attn_implementation = attention.register(chosen)
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[config.precision if config.method == "lora" else config.weights_dtype])
    try:
        with torch.device(device):
            model = TrainingQwen3(base)
    finally:
        torch.set_default_dtype(before)
    model.lm_head.loss_chunk = config.loss_chunk
    model = attach(model, config)
    if plan.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def _make_batch(plan: Plan, device: str) -> dict[str, Any]:
    """Rows of the data's mean length and share of supervised tokens, as many as a micro-batch holds."""
    work, size = plan.work, plan.micro_batch_tokens
    if device == "cpu":
        size = min(size, _MOST_CPU_TOKENS)
    length = min(size, max(2, work.epoch_tokens // work.rows)) if work else min(size, plan.config.max_length)
    learned = max(1, int(length * work.supervised / work.epoch_tokens)) if work else length - 1
    places = torch.arange(length - 1 - learned, length - 1) if learned < length else torch.arange(length - 1)
    row = RowTensors(
        ids=torch.ones(length, dtype=torch.long),
        places=places,
        targets=torch.ones(len(places), dtype=torch.long),
        is_answer=torch.ones(len(places), dtype=torch.bool),
    )
    batch = make_batch([row] * max(1, size // length), plan.config.packing, plan.config.think_loss_weight)
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def _pass(plan: Plan, model: Any, batch: dict[str, Any], device: str) -> float:
    """Seconds of one micro-batch."""
    _wait(device)
    began = time.perf_counter()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=autocasts(plan.config)):
        loss = model(**batch)["loss"]
    loss.backward()
    _wait(device)
    model.zero_grad(set_to_none=plan.config.gradient_accumulation == 1)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
