"""A training of seconds on the CPU, and the file that comes of it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.contract.chat_format import ChatFormat
from services.trainer.__main__ import main
from services.trainer.demo.batches import make_batches
from services.trainer.demo.recipe import Recipe, RecipeError
from services.trainer.demo.rows import RowMaker
from services.trainer.encode import IGNORED, Row, encode

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
TINY = Recipe(
    hidden=64, layers=2, heads=1, kv_heads=1, intermediate=64, epochs=4, batch_tokens=512, learning_rate=1e-2, dropout=0.05
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(maker: RowMaker, chat_format: ChatFormat) -> list[Row]:
    short = [e for e in maker.epoch(0) if not e.tools and len(e.messages) <= 3 and not e.enable_thinking]
    return [encode(example, chat_format) for example in short[:12]]


def train_tiny(rows: list[Row], chat_format: ChatFormat, recipe: Recipe = TINY) -> tuple[Any, float]:
    from services.trainer.demo.model import new_model
    from services.trainer.demo.train import train

    model = new_model(recipe, chat_format.control_ids, 6144)
    batches = make_batches(rows, recipe, random.Random(recipe.seed))
    return model, train(model, lambda epoch: batches, recipe, "cpu")


def test_the_loss_falls_and_depends_on_the_seed_alone(rows: list[Row], chat_format: ChatFormat) -> None:
    import torch

    first_model, first = train_tiny(rows, chat_format)
    second_model, second = train_tiny(rows, chat_format)
    assert first < 7.5 < 8.7  # ln 6144 = 8.7, where an untrained model begins
    assert first == second
    for a, b in zip(first_model.parameters(), second_model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.grad is None
    assert train_tiny(rows, chat_format, replace(TINY, seed=1))[1] != first


def test_the_file_holds_the_trained_weights(rows: list[Row], chat_format: ChatFormat, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from services.trainer.demo.model import load_model, save_model

    model, _ = train_tiny(rows[:2], chat_format, replace(TINY, epochs=1))
    trained = {name: weights.detach().to(torch.bfloat16) for name, weights in model.named_parameters()}
    save_model(model, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(trained)
    assert "lm_head.weight" not in saved  # tied
    assert all(torch.equal(saved[name], weights) for name, weights in trained.items())
    loaded = dict(load_model(tmp_path).named_parameters())
    assert all(torch.equal(loaded[name], weights) for name, weights in trained.items())
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]


def test_gradients_are_pytorchs_own(rows: list[Row], chat_format: ChatFormat) -> None:
    import torch

    from services.trainer.demo.gradients import Gradients, on_device, weighted_loss
    from services.trainer.demo.model import new_model

    model = new_model(TINY, chat_format.control_ids, 6144).eval()
    batches = make_batches(rows, TINY, random.Random(0))
    gradients = Gradients(model, "cpu")
    gradients.compute(batches[1])
    loss = gradients.compute(batches[0])
    ours = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    expected = weighted_loss(model, *on_device(batches[0], "cpu"))
    expected.backward()
    assert loss.item() == expected.item()
    assert all(torch.equal(a, b.grad) for a, b in zip(ours, model.parameters(), strict=True))


def test_padding_and_neighbours_change_no_loss(rows: list[Row], chat_format: ChatFormat) -> None:
    import torch

    from services.trainer.demo.gradients import on_device, weighted_loss
    from services.trainer.demo.model import new_model

    recipe = replace(TINY, beginning_weight=1.0, batch_tokens=4096)
    model = new_model(recipe, chat_format.control_ids, 6144).eval()

    def loss(some: list[Row]) -> float:
        (batch,) = make_batches(some, recipe, random.Random(0))
        with torch.no_grad():
            return float(weighted_loss(model, *on_device(batch, "cpu")).item())

    counts = [sum(label != IGNORED for label in row.labels) for row in rows[:4]]
    alone = sum(loss([row]) * n for row, n in zip(rows[:4], counts, strict=True)) / sum(counts)
    assert loss(rows[:4]) == pytest.approx(alone, rel=2e-3)


def test_the_learning_rate_rises_and_falls() -> None:
    from services.trainer.demo.train import schedule

    rates = [schedule(i / 100, 0.04) for i in range(101)]
    assert max(rates) == rates[4] == pytest.approx(1)
    assert rates[0] == rates[-1] == pytest.approx(0.01)
    assert rates[4:] == sorted(rates[4:], reverse=True)


# The command


def test_a_wrong_setting_is_told_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path / "m"), "--set", "hiden=3"]) == 2
    assert "no setting 'hiden'" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_recipes_take_numbers() -> None:
    assert Recipe().changed(["epochs=3", "dropout=0.5"]) == Recipe(epochs=3, dropout=0.5)
    with pytest.raises(RecipeError, match="epochs needs a number"):
        Recipe().changed(["epochs=many"])
