"""AdamW on bf16 weights: the algorithm is torch's, and updates too small for bf16 are not lost."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from services.trainer import optimizer  # noqa: E402
from services.trainer.optimizer import StochasticAdamW, copy_stochastically  # noqa: E402

pytestmark = pytest.mark.torch


def test_rounding_is_to_a_neighbour_and_right_on_average() -> None:
    torch.manual_seed(0)
    exact = torch.tensor([1.0, 1.001, -3.14159, 1e-5, 123.456, 0.0])
    rounded = torch.zeros(20_000, 6, dtype=torch.bfloat16)
    copy_stochastically(rounded, exact.expand(20_000, 6).contiguous())
    spacing = exact.abs() * 2**-7
    assert ((rounded.float() - exact).abs() <= spacing).all()
    assert ((rounded.float().mean(dim=0) - exact).abs() <= 0.02 * spacing + 1e-12).all()
    assert all(len(rounded[:, i].unique()) == (1 if exact[i] in (0.0, 1.0) else 2) for i in range(6))


def test_in_fp32_it_is_torchs_adamw() -> None:
    start = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    options = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.99)}
    first, second = StochasticAdamW([ours], **options), torch.optim.AdamW([theirs], **options)
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        gradient = torch.randn(7, 5, generator=generator)
        for parameter, optimizer_ in ((ours, first), (theirs, second)):
            parameter.grad = gradient.clone()
            optimizer_.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def moved(optimizer_class: type, steps: int = 200, rate: float = 1e-5) -> float:
    """How far weights of 1 get by steps of the rate, on average; fp32 says steps * rate."""
    torch.manual_seed(3)
    parameter = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    trained = optimizer_class([parameter], lr=rate, weight_decay=0.0)
    for _ in range(steps):
        parameter.grad = torch.ones_like(parameter)
        trained.step()
    return 1 - parameter.detach().float().mean().item()


def test_updates_that_bf16_cannot_hold_are_not_lost() -> None:
    assert moved(torch.optim.AdamW) == 0.0
    assert moved(StochasticAdamW) == pytest.approx(200 * 1e-5, rel=0.1)


def test_the_second_moment_falls_as_gradients_do() -> None:
    """Rounded to nearest it would stay: it changes by a thousandth a step, and bf16 tells apart four thousandths."""
    torch.manual_seed(4)
    parameter = torch.nn.Parameter(torch.ones(2048, dtype=torch.bfloat16))
    trained = StochasticAdamW([parameter], lr=1e-6)
    for step in range(600):
        parameter.grad = torch.full_like(parameter, 1.0 if step < 100 else 0.0)
        trained.step()
    expected = (1 - 0.999**100) * 0.999**500
    assert trained.state[parameter]["exp_avg_sq"].float().mean().item() == pytest.approx(expected, rel=0.05)


def test_state_is_as_small_as_the_weights() -> None:
    parameter = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    parameter.grad = torch.ones_like(parameter)
    trained = StochasticAdamW([parameter], lr=0.1)
    trained.step()
    assert {str(value.dtype) for value in trained.state[parameter].values()} == {"torch.bfloat16", "torch.float32"}
    assert trained.state[parameter]["step"].numel() == 1


def test_a_large_tensor_is_updated_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> torch.Tensor:
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 1000).view(10, 100))
        first = StochasticAdamW([parameter], lr=0.01)
        for _ in range(3):
            parameter.grad = parameter.detach().sin()
            first.step()
        return parameter.detach()

    whole = trained()
    monkeypatch.setattr(optimizer, "_PIECE", 64)
    torch.testing.assert_close(trained(), whole, rtol=0, atol=0)
    assert (whole != torch.linspace(-1, 1, 1000).view(10, 100)).all()
