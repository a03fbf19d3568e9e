"""A run that was interrupted and resumed is, bit for bit, the run that was not; and what cannot be resumed is refused."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from services.trainer import checkpoint, loop, train  # noqa: E402
from services.trainer.callbacks import Pace  # noqa: E402
from services.trainer.checkpoint import CheckpointError  # noqa: E402
from services.trainer.config import TrainConfig  # noqa: E402
from services.trainer.run_record import read_record  # noqa: E402
from tests.trainer.tiny import digest_of, make_base, make_data, tiny_config  # noqa: E402

pytestmark = pytest.mark.torch

# What draws random numbers and what keeps state: dropout and warm-up for an adapter, stochastic rounding for all weights.
RUNS: dict[str, dict[str, Any]] = {
    "adapter": {"preset": "seed", "dropout": 0.2, "epochs": 3, "eval_every": 3, "save_every": 2, "keep_checkpoints": 50},
    "full": {
        "method": "full", "precision": "bf16", "epochs": 3, "eval_every": 3, "save_every": 2, "keep_checkpoints": 50,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=sorted(RUNS))
def whole(
    request: pytest.FixtureRequest, base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainConfig:
    """An uninterrupted run's config; the run is in its `out`."""
    config = tiny_config(base, data, tmp_path_factory.mktemp(request.param) / "out", **RUNS[request.param])
    assert loop.fit(train.prepare_job(config, None)) == 0
    return config


def moved(config: TrainConfig, out: Path, **changes: Any) -> TrainConfig:
    return config.model_copy(update={"out": out, **changes})


def killed_after(config: TrainConfig, out: Path, step: int) -> TrainConfig:
    """The run as a kill some time after the checkpoint of `step` leaves it."""
    shutil.copytree(config.out, out)
    for path in (out / "checkpoints").iterdir():
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    for name in ("adapter", "model"):
        shutil.rmtree(out / name, ignore_errors=True)
    return moved(config, out)


def entries(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("time", "tokens_per_s")}
        for line in lines
        if "train_loss" not in line
    ]


def result(config: TrainConfig) -> str:
    return digest_of(config.out / ("adapter" if config.method == "lora" else "model"))


def test_the_same_run_twice_is_the_same(whole: TrainConfig, tmp_path: Path) -> None:
    again = moved(whole, tmp_path / "again")
    assert loop.fit(train.prepare_job(again, None)) == 0
    assert result(again) == result(whole)
    assert entries(again.out) == entries(whole.out)


# In the middle of an epoch, at the end of one, and before the first evaluation.
@pytest.mark.parametrize("step", [2, 4, 8])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(whole: TrainConfig, step: int, tmp_path: Path) -> None:
    config = killed_after(whole, tmp_path / "out", step)
    job = train.prepare_job(config, train.LATEST)
    assert job.resume == config.out / "checkpoints" / f"checkpoint-{step}"
    assert loop.fit(job) == 0
    assert result(config) == result(whole)
    assert entries(config.out) == entries(whole.out)
    last = max(int(path.name.split("-")[1]) for path in (whole.out / "checkpoints").iterdir())
    states = [torch.load(c.out / f"checkpoints/checkpoint-{last}/optimizer.pt") for c in (config, whole)]
    for moments, expected in zip(*(state["state"].values() for state in states), strict=True):
        assert all(torch.equal(moments[name], expected[name]) for name in expected)


def test_a_finished_run_has_nothing_to_resume_and_gives_its_result_again(whole: TrainConfig, tmp_path: Path) -> None:
    shutil.copytree(whole.out, tmp_path / "out")
    config = moved(whole, tmp_path / "out")
    assert loop.fit(train.prepare_job(config, train.LATEST)) == 0
    assert result(config) == result(whole)
    assert read_record(config.out)["status"] == "finished"


def test_a_run_that_is_told_to_stop_leaves_a_checkpoint_and_says_so(
    base: Path, data: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(base, data, tmp_path / "out", **RUNS["adapter"])
    step_end = Pace.on_step_end

    def stop_at_5(self: Pace, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        step_end(self, args, state, control, **options)

    monkeypatch.setattr(Pace, "on_step_end", stop_at_5)
    before = signal.getsignal(signal.SIGTERM)
    assert loop.fit(train.prepare_job(config, None)) == loop.TOLD_TO_STOP
    assert signal.getsignal(signal.SIGTERM) == before
    assert "stopped after step 5: go on with --resume" in capsys.readouterr().err
    assert read_record(config.out)["status"] == "stopped"
    assert not (config.out / "adapter").exists()
    assert checkpoint.newest(config.out / "checkpoints").name == "checkpoint-5"


# What is refused


def resume(config: TrainConfig, capsys: Any) -> str:
    """The one line with which resuming ends; its exit code is not 0."""
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    (config.out / "given.yaml").write_text(config.as_yaml())
    assert train.run(parser.parse_args(["--config", str(config.out / "given.yaml"), "--resume"])) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return str(line)


@pytest.fixture
def interrupted(base: Path, data: Path, tmp_path: Path) -> TrainConfig:
    config = tiny_config(base, data, tmp_path / "out", max_steps=2, save_every=1)
    assert loop.fit(train.prepare_job(config, None)) == 0
    shutil.rmtree(config.out / "adapter")
    return config


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"])
def test_a_truncated_checkpoint_is_refused(name: str, interrupted: TrainConfig, capsys: Any) -> None:
    path = interrupted.out / "checkpoints" / "checkpoint-2" / name
    path.write_bytes(path.read_bytes()[:-10])
    line = resume(interrupted, capsys)
    assert "checkpoint-2 is damaged" in line
    assert "resume from another one, or start anew" in line
    assert not (interrupted.out / "adapter").exists()


def test_a_changed_byte_in_a_checkpoint_is_found(interrupted: TrainConfig, capsys: Any) -> None:
    path = interrupted.out / "checkpoints" / "checkpoint-2" / "optimizer.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "optimizer.pt is not what was saved" in resume(interrupted, capsys)


def test_a_checkpoint_that_a_kill_left_unfinished_is_passed_over(interrupted: TrainConfig) -> None:
    (interrupted.out / "checkpoints" / "checkpoint-2" / checkpoint.SEAL).unlink()
    assert checkpoint.newest(interrupted.out / "checkpoints").name == "checkpoint-1"
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        checkpoint.check(interrupted.out / "checkpoints" / "checkpoint-2", {})


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"learning_rate": 0.02}, "learning_rate was 0.01 and is 0.02"), ({"seed": 8}, "seed was 7 and is 8")],
)
def test_another_config_is_refused_by_name(
    changes: dict[str, Any], named: str, interrupted: TrainConfig, capsys: Any
) -> None:
    line = resume(interrupted.model_copy(update=changes), capsys)
    assert "is of another run" in line
    assert named in line


def test_other_data_are_refused(interrupted: TrainConfig, tmp_path: Path, capsys: Any) -> None:
    other = make_data(tmp_path / "other", rows=23)
    assert "data_sha256 was" in resume(interrupted.model_copy(update={"data": other}), capsys)


def test_another_number_of_processes_is_refused(
    interrupted: TrainConfig, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "processes was 1 and is 2" in resume(interrupted, capsys)


def test_a_run_may_move_and_report_elsewhere(interrupted: TrainConfig, tmp_path: Path) -> None:
    interrupted.out.rename(tmp_path / "moved")
    config = moved(interrupted, tmp_path / "moved", keep_checkpoints=5)
    assert loop.fit(train.prepare_job(config, train.LATEST)) == 0
    assert (config.out / "adapter").is_dir()


def test_a_folder_without_a_checkpoint_is_refused(base: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    config = tiny_config(base, data, tmp_path / "out")
    config.out.mkdir()
    assert "there is no complete checkpoint in" in resume(config, capsys)
