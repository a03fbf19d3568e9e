"""The planner's account against what the trainer's own model keeps alive, tensor by tensor, on the CPU."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.trainer.config import TrainConfig, make_config
from services.trainer.memory import Shape, measure_memory, trainable_parameters
from services.trainer.plan_load import loss_positions, make_load
from tests.trainer.tiny import make_data

pytestmark = pytest.mark.torch

TOKENS, ROWS = 256, 2
SIZES: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine take longer than these small products."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _step_peak(config: TrainConfig, checkpointing: bool) -> tuple[int, int]:
    """Peak in bytes of the second of two accumulated micro-batches, and the number of trained parameters."""
    import torch
    from transformers import Qwen3Config

    from services.trainer import attention
    from services.trainer.batch import RowTensors, make_batch
    from services.trainer.model import DTYPES, TrainingQwen3, attach, autocasts
    from tests.trainer.live_memory import LiveMemory

    shape = Qwen3Config(**SIZES)
    shape._attn_implementation = attention.register("sdpa")
    dtype = DTYPES[config.precision if config.method == "lora" else config.weights_dtype]
    model = TrainingQwen3(shape).to(dtype)
    model.lm_head.loss_chunk = config.loss_chunk
    model = attach(model, config).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    length = TOKENS // ROWS
    ids = torch.arange(length)
    row = RowTensors(ids, torch.arange(length - 1), torch.arange(1, length), torch.ones(length - 1).bool())
    batch = make_batch([row] * ROWS, packed=True, think_weight=1.0)
    trained = [p for p in model.parameters() if p.requires_grad]
    moments = [torch.zeros_like(p) for p in trained for _ in range(2)]
    tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    with LiveMemory([*model.parameters(), *model.buffers(), *moments, *tensors]) as memory:
        for _ in range(2):
            memory.restart()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocasts(config)):
                loss = model(**batch)["loss"]
            loss.backward()
            del loss
        return memory.peak, sum(p.numel() for p in trained)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "seed"},
        {"preset": "default"},
        {"preset": "default", "trained_weights": "fp32"},
        {"preset": "default", "trained_weights": "fp32", "dropout": 0.1},
        {"preset": "default", "precision": "fp32"},
        {"preset": "seed", "precision": "fp32"},
        {"method": "full"},
        {"method": "full", "trained_weights": "fp32"},
        {"method": "full", "precision": "fp32"},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_the_planned_peak_is_what_a_step_keeps_alive(settings: dict[str, Any], checkpointing: bool) -> None:
    config = make_config({**settings, "loss_chunk": 64, "max_length": 128, "batch_tokens": TOKENS})
    shape = Shape.of(SIZES)
    load = make_load(config, shape, device="cpu", tokens=TOKENS, checkpointing=checkpointing, devices=1)
    planned = measure_memory(shape, load)
    peak, trained = _step_peak(config, checkpointing)
    assert trained == trainable_parameters(shape, load)
    assert planned.peak == pytest.approx(peak, rel=0.06), planned


def test_the_plan_cuts_the_loss_as_the_loss_does() -> None:
    from services.trainer.loss import chunk_positions

    for vocabulary in (6144, 151_936, 10**9):
        for most in (1, 256, 1024, 10**6):
            assert loss_positions(vocabulary, most) == chunk_positions(vocabulary, most)


def test_a_probe_measures_a_speed_and_reads_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from services.trainer.plan import add_arguments, run

    (tmp_path / "config.json").write_text(json.dumps(SIZES), encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    settings = [f"base={tmp_path}", "device=cpu", "precision=fp32", "batch_tokens=64", "max_length=32"]
    data = make_data(tmp_path / "data", rows=4)
    words = [word for setting in (*settings, f"data={data}") for word in ("--set", setting)]
    assert run(parser.parse_args([*words, "--probe", "--json"])) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens_per_s"] > 0
    assert found["tokens_per_s_from"] == "a probe on random weights"
    assert found["seconds"] == found["work"]["tokens"] / found["tokens_per_s"]
