"""Compiled layers and the compiled loss: the same numbers, from one program for packs of any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402
from transformers import AttentionInterface  # noqa: E402

from services.trainer import attention, loop, loss  # noqa: E402
from services.trainer.batch import RowTensors, make_batch  # noqa: E402
from services.trainer.model import attach, can_compile, compile_layers, load_base  # noqa: E402
from services.trainer.train import prepare_job  # noqa: E402
from tests.trainer.tiny import make_base, make_data, tiny_config  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("tiny"))


def with_borders(_module: Any, query: Any, key: Any, value: Any, _mask: None, scaling: float, **borders: Any) -> Any:
    """Takes what the GPU's kernels take."""
    places = torch.arange(query.shape[2])
    row = (places[:, None] >= borders["row_ends"][None]).sum(dim=1)
    seen = (row[:, None] == row[None]) & (places[:, None] >= places[None])
    output = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2), None


def pack(*lengths: int) -> dict[str, Any]:
    made = []
    for length in lengths:
        places = torch.arange(length // 2, length - 1)
        ids = torch.randint(0, 6000, (length,))
        made.append(RowTensors(ids, places, ids[places + 1], places > length - 4))
    return make_batch(made, packed=True, think_weight=1.0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's tracer asks every input
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("settings", [{"dropout": 0.0}, {"dropout": 0.1}, {"method": "full"}])
def test_compiled_layers_train_as_others_do_and_are_traced_once(
    settings: dict[str, Any], checkpointing: bool, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AttentionInterface.register("medthink_with_borders", with_borders)
    monkeypatch.setattr(attention, "register", lambda _name: "medthink_with_borders")
    config = tiny_config(base, Path("data"), Path("out"), **settings)
    models = []
    for compiled in (False, True):
        model = attach(load_base(config, "cpu"), config).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        if compiled:
            compile_layers(model, backend="aot_eager")
        models.append(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for lengths in ((20, 30), (7, 50, 11), (), (64,)):
        batch, found = pack(*lengths), []
        for model in models:
            torch.manual_seed(3)
            result = model(**batch)["loss"]
            result.backward()
            gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            found.append((result.detach(), torch.cat(gradients)))
            model.zero_grad()
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_for_compilers_is_the_loss(dtype: Any) -> None:
    torch.manual_seed(0)
    logits, targets = (5 * torch.randn(9, 70)).to(dtype), torch.randint(0, 70, (9,))
    weights = torch.rand(9)
    fused, plain = loss.fused_loss(logits, targets, weights), loss._chunk_loss(logits, targets, weights)
    torch.testing.assert_close(fused, plain, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_a_compiled_loss_takes_twice_the_positions_for_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(logits: Any, targets: Any, weights: Any) -> Any:
        seen.append(len(logits))
        return loss.fused_loss(logits, targets, weights)

    monkeypatch.setattr(loss, "_compiled_loss", lambda: watched)
    monkeypatch.setattr(loss, "MOST_LOGITS", 3 * 50)
    hidden, head = torch.randn(10, 4, requires_grad=True), torch.randn(50, 4)
    targets, weights = torch.randint(0, 50, (10,)), torch.ones(10)
    compiled, _ = loss.supervised_cross_entropy(hidden, head, targets, weights, compiled=True)
    assert seen == [6, 4]
    plain, _ = loss.supervised_cross_entropy(hidden, head, targets, weights)
    torch.testing.assert_close(compiled, plain)
    loss.supervised_cross_entropy(hidden, head, targets, weights, chunk=5, compiled=True)
    assert seen[2:] == [5, 5]


@pytest.mark.parametrize(("longest", "bound"), [(1, 1), (2, 2), (3, 4), (2048, 2048), (1025, 2048)])
def test_kernels_are_told_a_bound_of_the_longest_row(longest: int, bound: int) -> None:
    ends = torch.tensor([0, longest, longest + 1])
    assert attention.borders("medthink_varlen", ends, (longest, 1))["longest"] == bound
    assert attention.borders("medthink_sdpa", ends, (longest, 1)) == {"row_lengths": (longest, 1)}


def test_nothing_is_compiled_on_a_cpu() -> None:
    assert not can_compile("cpu")


@pytest.mark.parametrize("least", [0, 10**9])
def test_a_run_compiles_where_that_pays_for_itself(
    least: int, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(loop, "can_compile", lambda _device: True)
    monkeypatch.setattr(loop, "compile_layers", compiled.append)
    monkeypatch.setattr(loop, "COMPILES_FROM", least)
    data = make_data(tmp_path / "data", rows=6, held_out=2)
    assert loop.fit(prepare_job(tiny_config(base, data, tmp_path / "run", max_steps=1), None)) == 0
    assert bool(compiled) == (least == 0)
