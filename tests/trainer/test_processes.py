"""Two CPU processes over gloo learn what one process learns from the same global batches; the first alone writes.

Adapters by DDP, full fine-tunes by FSDP. The two processes are started once, since starting them is most of the time.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from services.trainer import loop, train  # noqa: E402
from services.trainer.run_record import read_record  # noqa: E402
from tests import qwen3  # noqa: E402
from tests.trainer.tiny import digest_of, make_base, make_data, tiny_config  # noqa: E402

pytestmark = pytest.mark.torch

SETTINGS: dict[str, dict[str, Any]] = {
    "adapter": {"epochs": 2, "think_loss_weight": 0.5},
    "full": {"method": "full", "epochs": 2},
    "bf16": {"method": "full", "epochs": 2, "precision": "bf16", "gradient_checkpointing": "on"},
}

# Each process: the adapter into a folder of its own, so that what it writes is seen; then the full fine-tunes, which share one;
# then the bf16 one again from the checkpoint after its first epoch.
WORKER = """
import json, os, shutil, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from services.trainer import loop, train
from tests.trainer.test_processes import SETTINGS
from tests.trainer.tiny import tiny_config
base, data, out = map(Path, sys.argv[1:])
rank = os.environ["RANK"]
def run(name, folder, resume=None):
    config = tiny_config(base, data, folder, gradient_accumulation=2, **SETTINGS[name])
    return loop.fit(train.prepare_job(config, resume))
codes = [run("adapter", out / f"adapter-{rank}"), run("full", out / "full"), run("bf16", out / "bf16")]
if rank == "0":
    shutil.copytree(out / "bf16", out / "resumed")
    shutil.rmtree(out / "resumed" / "model")
    shutil.rmtree(max((out / "resumed" / "checkpoints").iterdir(), key=lambda p: int(p.name.split("-")[1])))
torch.distributed.barrier()
codes.append(run("bf16", out / "resumed", train.LATEST))
print(json.dumps(codes))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), rows=23, held_out=5)  # neither is a multiple of anything


@pytest.fixture(scope="module")
def two(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in ("0", "1"):
        environment = os.environ | {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(qwen3.ROOT),
        }
        arguments = [sys.executable, "-c", WORKER, str(base), str(data), str(out)]
        started.append(
            subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    try:
        for process in started:
            printed, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
            assert json.loads(printed.splitlines()[-1]) == [0, 0, 0, 0]
    finally:
        for process in started:
            process.kill()
    return out


def one(name: str, base: Path, data: Path, out: Path) -> Path:
    """The same in this process, with the accumulation of both."""
    config = tiny_config(base, data, out, gradient_accumulation=4, **SETTINGS[name])
    assert loop.fit(train.prepare_job(config, None)) == 0
    return out


def losses(out: Path) -> list[Mapping[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    names = ("loss", "think_loss", "answer_loss", "eval_think_loss", "eval_answer_loss")
    return [{name: line[name] for name in ("step", *names) if name in line} for line in lines]


def norms(out: Path) -> list[float]:
    """Of the gradients; a wrong factor in them would not change Adam's steps, nor the losses."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["grad_norm"] for line in lines if "grad_norm" in line]


@pytest.mark.parametrize(("name", "folder"), [("adapter", "adapter-0"), ("full", "full")])
def test_two_processes_have_the_losses_of_one(
    name: str, folder: str, two: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    alone = one(name, base, data, tmp_path / "out")
    found, expected = losses(two / folder), losses(alone)
    assert len(found) == len(expected) > 6
    for line, reference in zip(found, expected, strict=True):
        assert line == pytest.approx(reference, rel=1e-4)
    assert norms(two / folder) == pytest.approx(norms(alone), rel=1e-3)


def test_two_processes_learn_the_adapter_that_one_learns(two: Path, base: Path, data: Path, tmp_path: Path) -> None:
    alone = load_file(one("adapter", base, data, tmp_path / "out") / "adapter" / "adapter_model.safetensors")
    found = load_file(two / "adapter-0" / "adapter" / "adapter_model.safetensors")
    for name, tensor in alone.items():  # bf16 and Adam's first steps turn a last digit into a visible one
        difference = (found[name].float() - tensor.float()).abs().mean()
        assert difference < 0.02 * tensor.float().abs().mean()


def test_the_first_process_alone_writes(two: Path) -> None:
    """But for its random state, which each keeps beside the checkpoint."""
    second = {path.name for path in (two / "adapter-1").rglob("*") if path.is_file()}
    assert second == {"rng_state_1.pth"}
    first = {path.name for path in (two / "adapter-0").rglob("*") if path.is_file()}
    assert {"adapter_model.safetensors", "run.json", "metrics.jsonl", "complete.json"} <= first
    assert read_record(two / "adapter-0")["processes"] == 2


def test_sharded_weights_are_saved_whole(two: Path, base: Path) -> None:
    before, after = load_file(base / "model.safetensors"), load_file(two / "full" / "model" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in before.items()}
    step = read_record(two / "full")["metrics"]["best_step"]
    trained = load_file(two / "full" / "checkpoints" / f"checkpoint-{step}" / "model.safetensors")
    for name, tensor in trained.items():
        assert torch.equal(after[name], tensor.bfloat16())
        assert (
            before[name] != tensor
        ).float().mean() > 0.2  # each process's part; rows of words that do not occur rest


def test_pure_bf16_learns_in_shards_too(two: Path) -> None:
    metrics = read_record(two / "bf16")["metrics"]
    assert metrics["eval_answer_loss"] < 0.9 * metrics["eval_answer_loss_before"]


def test_a_resumed_sharded_run_is_bit_equal_to_an_uninterrupted_one(two: Path) -> None:
    assert digest_of(two / "resumed" / "model") == digest_of(two / "bf16" / "model")
    assert losses(two / "resumed") == losses(two / "bf16")
    shutil.rmtree(two / "resumed")
