"""What TensorBoard and SwanLab are handed, with stand-ins for the packages, which are not installed for tests."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from services.trainer.config import make_config
from services.trainer.reporters import make_reporters

pytestmark = pytest.mark.torch
FIRST = SimpleNamespace(is_world_process_zero=True, global_step=3)
OTHER = SimpleNamespace(is_world_process_zero=False, global_step=3)


class Recorder:
    """Takes any call and notes it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: self.calls.append((name, arguments, options))


def test_swanlab_stays_on_the_machine_and_gets_each_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWANLAB_MODE", raising=False)
    package = Recorder()
    monkeypatch.setitem(sys.modules, "swanlab", package)
    (reporter,) = make_reporters(make_config({"report_to": "swanlab", "out": tmp_path}))
    reporter.on_log(None, OTHER, None, logs={"loss": 2.0})
    assert package.calls == []
    reporter.on_log(None, FIRST, None, logs={"loss": 1.0})
    reporter.on_log(None, FIRST, None, logs={"eval_answer_loss": 0.5})
    reporter.on_train_end(None, FIRST, None)
    names = [name for name, _, _ in package.calls]
    assert names == ["init", "log", "log", "finish"]
    assert package.calls[0][2]["mode"] == "offline"
    assert package.calls[0][2]["logdir"] == str(tmp_path / "swanlab")
    assert [call[1:] for call in package.calls[1:3]] == [
        (({"train/loss": 1.0},), {"step": 3}),
        (({"eval/answer_loss": 0.5},), {"step": 3}),
    ]


def test_tensorboard_writes_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, folders = Recorder(), []

    def make(log_dir: str) -> Recorder:
        folders.append(log_dir)
        return writer

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=make))
    (reporter,) = make_reporters(make_config({"report_to": "tensorboard", "out": tmp_path}))
    reporter.on_log(None, FIRST, None, logs={"loss": 1.0, "epoch": 0.5})
    reporter.on_train_end(None, FIRST, None)
    assert folders == [str(tmp_path / "tensorboard")]
    assert writer.calls == [
        ("add_scalar", ("train/loss", 1.0, 3), {}),
        ("add_scalar", ("train/epoch", 0.5, 3), {}),
        ("close", (), {}),
    ]


def test_nothing_is_reported_unless_asked_for() -> None:
    assert make_reporters(make_config({})) == []
