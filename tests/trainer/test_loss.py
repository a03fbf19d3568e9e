"""The chunked loss against torch's own on whole logits, values and gradients."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from services.trainer.loss import chunk_positions, supervised_cross_entropy  # noqa: E402

pytestmark = pytest.mark.torch
N, HIDDEN, VOCABULARY = 37, 16, 101


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, HIDDEN, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (N,), generator=generator)
    weights = torch.rand(N, generator=generator)
    return hidden, weight, targets, weights


def whole(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    losses = functional.cross_entropy(hidden.double() @ weight.double().t(), targets, reduction="none")
    return (losses * weights.double()).sum()


@pytest.mark.parametrize("chunk", [1, 5, N, 1000])
def test_chunks_give_the_loss_and_gradients_of_the_whole(chunk: int) -> None:
    hidden, weight, targets, weights = inputs()
    expected = torch.autograd.grad(whole(hidden, weight, targets, weights), (hidden, weight))
    total, losses = supervised_cross_entropy(hidden, weight, targets, weights, chunk)
    found = torch.autograd.grad(total * 3, (hidden, weight))
    assert total.item() == pytest.approx(whole(hidden, weight, targets, weights).item(), rel=1e-6)
    assert (losses * weights).sum().item() == pytest.approx(total.item(), rel=1e-6)
    for gradient, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, 3 * reference, rtol=1e-5, atol=1e-6)


def test_a_frozen_head_gets_no_gradient_and_inputs_get_the_same() -> None:
    hidden, weight, targets, weights = inputs()
    expected = torch.autograd.grad(whole(hidden, weight, targets, weights), hidden)[0]
    total, _ = supervised_cross_entropy(hidden, weight.detach(), targets, weights, 7)
    total.backward()
    assert weight.grad is None
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-5, atol=1e-6)


def test_sums_in_bf16_are_as_good_as_its_products() -> None:
    """torch's own linear_cross_entropy sums in bf16 and is off by 3 to 5 % (torch 2.13)."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2048, 64, generator=generator).bfloat16()
    weight = (torch.randn(512, 64, generator=generator) / 4).bfloat16()
    targets = torch.randint(0, 512, (2048,), generator=generator)
    weights = torch.ones(2048)
    total, _ = supervised_cross_entropy(hidden, weight, targets, weights, 100)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(whole(hidden, weight, targets, weights).item(), rel=1e-3)


def test_under_autocast_products_are_bf16_and_gradients_keep_their_types() -> None:
    hidden, weight, targets, weights = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = supervised_cross_entropy(hidden, weight, targets, weights, 8)
    total.backward()
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.float32, torch.float32)
    exact = whole(hidden, weight, targets, weights).item()
    assert total.item() != pytest.approx(exact, rel=1e-6)
    assert total.item() == pytest.approx(exact, rel=1e-2)
    torch.testing.assert_close(
        weight.grad, torch.autograd.grad(whole(hidden, weight, targets, weights), weight)[0], rtol=0.1, atol=0.1
    )


def test_weights_scale_each_tokens_gradient() -> None:
    hidden, weight, targets, weights = inputs()
    weights[:10] = 0.0
    total, losses = supervised_cross_entropy(hidden, weight, targets, weights, 4)
    total.backward()
    assert hidden.grad[:10].abs().max() == 0
    assert hidden.grad[10:].abs().sum(dim=-1).min() > 0
    assert losses[:10].min() > 0  # still reported


def test_no_supervised_tokens_is_a_loss_of_zero_that_can_be_learned_from() -> None:
    hidden, weight, targets, weights = inputs()
    total, losses = supervised_cross_entropy(hidden[:0], weight, targets[:0], weights[:0])
    total.backward()
    assert (total.item(), len(losses)) == (0.0, 0)
    assert weight.grad.abs().max() == 0


def test_huge_logits_do_not_overflow() -> None:
    hidden, weight, targets, weights = inputs()
    total, _ = supervised_cross_entropy(hidden * 1e4, weight, targets, weights, 6)
    assert torch.isfinite(total)
    assert total.item() == pytest.approx(whole(hidden * 1e4, weight, targets, weights).item(), rel=1e-5)


def test_its_gradients_are_used_once() -> None:
    hidden, weight, targets, weights = inputs()
    total, _ = supervised_cross_entropy(hidden, weight, targets, weights)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        total.backward()


def test_without_gradients_none_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets, weights = inputs()
    with torch.no_grad():
        total, _ = supervised_cross_entropy(hidden, weight, targets, weights)
    assert not total.requires_grad
    assert total.item() == pytest.approx(whole(hidden, weight, targets, weights).item(), rel=1e-6)


def test_a_chunk_of_qwen3s_vocabulary_is_small() -> None:
    assert chunk_positions(151_936, 1024) == 263
    assert chunk_positions(6144, 1024) == 1024
    assert chunk_positions(10**9, 1024) == 1


def test_logits_of_all_tokens_never_exist() -> None:
    """The largest tensor that is made, as torch's profiler of allocations sees it, is far below tokens x vocabulary."""
    hidden = torch.randn(4096, 8, requires_grad=True)
    weight = torch.randn(2000, 8)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        total, _ = supervised_cross_entropy(hidden, weight, torch.zeros(4096).long(), torch.ones(4096), 64)
        total.backward()
    largest = max(event.self_cpu_memory_usage / max(1, event.count) for event in profile.key_averages())
    assert largest < 4096 * 2000 * 4 / 10
