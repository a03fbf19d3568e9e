"""The trainer's benchmark on the CPU, tiny: our recipe and the plain one train on all rows and are timed over whole steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks.train.agreement import distances  # noqa: E402
from benchmarks.train.plain import step_tokens  # noqa: E402
from benchmarks.train.random_model import TINY_SHAPE, make_model  # noqa: E402
from benchmarks.train.rows import make_rows, mixed_lengths  # noqa: E402
from benchmarks.train.stopwatch import Stopwatch  # noqa: E402
from benchmarks.train.worker import main  # noqa: E402
from services.trainer.batch import row_tensors  # noqa: E402
from services.trainer.encode import Row  # noqa: E402
from services.trainer.rows import TrainingRow  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny-model")
    make_model(folder, TINY_SHAPE)
    return folder


@pytest.mark.parametrize("recipe", ["plain", "plain-padded", "ours"])
@pytest.mark.parametrize("mode", ["lora-seed-mix", "full-mix"])
def test_a_recipe_trains_on_every_row_and_is_timed(recipe: str, mode: str, model: Path, tmp_path: Path) -> None:
    rows = 40
    spec = {"mode": mode, "recipe": recipe, "rows": rows, "longest": 64, "ids_below": 6144, "warm_up": 1}
    (tmp_path / "spec.json").write_text(json.dumps(spec | {"model": str(model), "out": str(tmp_path / "run")}))
    main([str(tmp_path / "spec.json"), str(tmp_path / "result.json")])
    figures = json.loads((tmp_path / "result.json").read_text())
    assert 0 < figures["timed_tokens"] < sum(mixed_lengths(rows, 64))
    assert figures["tokens_per_s"] == pytest.approx(figures["timed_tokens"] / figures["timed_seconds"])
    assert figures["steps"] == 1 + len(figures["tokens_per_s_by_step"])
    assert figures["first_loss"] == pytest.approx(8.72, abs=0.1)  # of 6,144 ids, none likelier than another
    assert figures["peak_bytes"] > 0


def test_steps_of_the_plain_recipe_have_32_rows() -> None:
    assert step_tokens([1] * 70) == [32, 32, 6]


def test_a_watch_that_saw_other_steps_than_planned_gives_no_figures() -> None:
    watch = Stopwatch()
    watch.ends, watch.losses = [1.0, 2.0, 4.0], [3.0, 2.0, 1.0]
    assert watch.measured([10, 20, 30], warm_up=1)["tokens_per_s"] == pytest.approx(50 / 3)
    with pytest.raises(RuntimeError, match="2 steps were planned and 3 seen"):
        watch.measured([10, 20], warm_up=1)
    with pytest.raises(RuntimeError, match="too few"):
        watch.measured([10, 20, 30], warm_up=3)


def test_packed_padded_and_single_rows_are_as_near_to_the_reference(model: Path) -> None:
    rows = [
        row_tensors(TrainingRow(Row(row.ids, row.labels), row.answer))
        for row in make_rows(mixed_lengths(4, 64), TINY_SHAPE["vocab_size"])
    ]
    found = distances(model, rows, "cpu")
    alone = found["alone sdpa bf16"]
    for far in found.values():
        assert all(distance <= 2 * reference for distance, reference in zip(far, alone, strict=True))
