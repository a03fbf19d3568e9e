"""Rows in one pack, apart, and padded: the same losses and gradients, and no token that sees another row."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from services.trainer.batch import make_batch, row_tensors  # noqa: E402
from services.trainer.config import make_config  # noqa: E402
from services.trainer.encode import IGNORED, Row  # noqa: E402
from services.trainer.model import attach, load_base  # noqa: E402
from services.trainer.rows import TrainingRow  # noqa: E402
from tests.trainer.tiny import make_base  # noqa: E402

pytestmark = pytest.mark.torch
LENGTHS = (17, 5, 31, 1, 9)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    config = make_config({"base": base, "precision": "fp32", "rank": 4, "device": "cpu"})
    model = attach(load_base(config, "cpu"), config)
    with torch.no_grad():  # B is zero at first, and nothing would depend on A
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(3))
    return model.eval()


def rows(seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in LENGTHS:
        ids = torch.randint(0, 6000, (length,), generator=generator).tolist()
        made.append(row_tensors(TrainingRow(Row(ids, [IGNORED] * (length // 3) + ids[length // 3 :]), length // 2)))
    return made


def losses_and_gradients(model: Any, batches: list[dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
    model.zero_grad(set_to_none=True)
    losses = []
    for batch in batches:
        outputs = model(**batch)
        outputs["loss"].backward()
        losses.append(outputs["losses"])
    return torch.cat(losses), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert set(found[1]) == set(expected[1])
    for name, gradient in found[1].items():
        scale = expected[1][name].abs().max().item()
        torch.testing.assert_close(gradient, expected[1][name], rtol=1e-4, atol=1e-5 * max(scale, 1.0))


def test_a_pack_gives_what_its_rows_give_apart(model: Any) -> None:
    apart = losses_and_gradients(model, [make_batch([row], True, 1.0) for row in rows()])
    packed = losses_and_gradients(model, [make_batch(rows(), True, 1.0)])
    assert len(packed[1]) == 28
    assert_same(packed, apart)


def test_a_padded_batch_gives_what_its_rows_give_apart(model: Any) -> None:
    apart = losses_and_gradients(model, [make_batch([row], True, 1.0) for row in rows()])
    assert_same(losses_and_gradients(model, [make_batch(rows(), False, 1.0)]), apart)


def test_without_the_rows_borders_tokens_would_see_other_rows(model: Any) -> None:
    """Shows that the tests above can fail: the same ids as one long row."""
    batch = make_batch(rows(), True, 1.0)
    apart = losses_and_gradients(model, [make_batch([row], True, 1.0) for row in rows()])[0]
    whole = batch | {"row_lengths": (sum(LENGTHS),), "row_ends": torch.tensor([0, sum(LENGTHS)]).int()}
    assert (losses_and_gradients(model, [whole])[0] - apart).abs().max() > 0.1


def test_another_rows_ids_change_nothing_in_a_row(model: Any) -> None:
    before = make_batch(rows(0), True, 1.0)
    other = rows(0)
    other[0], other[2] = rows(1)[0], rows(1)[2]
    after = make_batch(other, True, 1.0)
    with torch.no_grad():
        first, second = model(**before)["losses"], model(**after)["losses"]
    counts = [len(row.targets) for row in rows()]
    kept = [piece for i, piece in enumerate(first.split(counts)) if i in (1, 3, 4)]
    again = [piece for i, piece in enumerate(second.split(counts)) if i in (1, 3, 4)]
    torch.testing.assert_close(torch.cat(kept), torch.cat(again), rtol=1e-5, atol=1e-6)
    assert (first - second).abs().max() > 0.1


def test_the_training_forward_agrees_with_transformers_own(model: Any, base: Path) -> None:
    """Its logits from its own attention and masks, row by row."""
    from transformers import Qwen3ForCausalLM

    reference = Qwen3ForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for row in rows():
            logits = reference(input_ids=row.ids[None]).logits[0]
            expected = torch.nn.functional.cross_entropy(logits[row.places], row.targets, reduction="none")
            with model.disable_adapter():
                found = model(**make_batch([row], True, 1.0))["losses"]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_changes_nothing(model: Any) -> None:
    batch = make_batch(rows(), True, 1.0)
    expected = losses_and_gradients(model, [batch])
    recomputing = copy.deepcopy(model)
    recomputing.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    recomputing.train()  # no dropout in this config
    assert_same(losses_and_gradients(recomputing, [batch]), expected)


@pytest.mark.parametrize("packed", [True, False])
def test_the_first_id_of_a_row_is_never_a_target(packed: bool) -> None:
    ids = [11, 12, 13]
    made = [row_tensors(TrainingRow(Row(ids, ids), 1)) for _ in range(2)]
    batch = make_batch(made, packed, 1.0)
    assert batch["targets"].tolist() == [12, 13, 12, 13]
    assert batch["input_ids"].flatten()[batch["kept"]].tolist() == [11, 12, 11, 12]


def test_places_targets_and_parts_belong_together() -> None:
    row = row_tensors(TrainingRow(Row([5, 6, 7, 8, 9], [IGNORED, IGNORED, 7, 8, 9]), 4))
    batch = make_batch([row, row], True, 0.25)
    assert batch["input_ids"].flatten()[batch["kept"] + 1].tolist() == batch["targets"].tolist()
    assert batch["is_answer"].tolist() == [False, False, True] * 2
    assert batch["weights"].tolist() == [0.25, 0.25, 1.0] * 2
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4] * 2]
    assert (batch["row_ends"].tolist(), batch["tokens"]) == ([0, 5, 10], 10)


def test_a_batch_without_rows_can_be_trained_on(model: Any) -> None:
    losses, gradients = losses_and_gradients(model, [make_batch([], True, 1.0)])
    assert len(losses) == 0
    assert len(gradients) == 28
    assert max(gradient.abs().max() for gradient in gradients.values()) == 0
