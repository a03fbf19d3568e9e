"""AdamW for weights that are bf16 and have no copy in fp32: updates are rounded stochastically. Needs torch.

bf16 has 8 bits of mantissa. An update below 1/512 of its weight, as nearly all are at 2e-5, vanishes when it is rounded to
nearest; rounded up with the probability of its remainder, it is right on average. A full fine-tune of Qwen3-1.7B then needs
8 bytes a parameter (weight, gradient, two moments) instead of 16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

_PIECE = 1 << 24  # elements that are in fp32 at one time; a whole embedding would be 1.2 GB, several times over


class StochasticAdamW(torch.optim.Optimizer):  # type: ignore[misc]  # torch is untyped here
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) with its state in the parameters' type.

    Rounding draws from torch's global generator of the parameter's device: a resumed run that restores it draws the same.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        tensors = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
        pieces = zip(*(_local(tensor).split(_PIECE) for tensor in tensors), strict=True)
        for weight, gradient, mean, square in pieces:
            _update_piece(weight, gradient, mean, square, int(state["step"].item()), group)


def _update_piece(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    step: int,
    group: dict[str, Any],
) -> None:
    beta1, beta2 = group["betas"]
    g = gradient.float()
    m = mean.float().lerp_(g, 1 - beta1)
    v = square.float().mul_(beta2).addcmul_(g, g, value=1 - beta2)
    mean.copy_(m)  # moves by a tenth of its error a step, which rounding to nearest does not hide
    denominator = (v / (1 - beta2**step)).sqrt_().add_(group["eps"])
    copy_stochastically(square, v)
    w = weight.float().mul_(1 - group["lr"] * group["weight_decay"])
    w.addcdiv_(m, denominator, value=-group["lr"] / (1 - beta1**step))
    copy_stochastically(weight, w)


def copy_stochastically(target: torch.Tensor, source: torch.Tensor) -> None:
    """Writes fp32 `source` into bf16 `target`, each number up or down with the probability that keeps its mean.

    bf16 is the upper half of fp32: a random number below 2^16 added to the lower half carries into the upper one as often as
    the lower half is large. A target in fp32 is copied as it is.
    """
    if target.dtype != torch.bfloat16:
        target.copy_(source)
        return
    bits = source.view(torch.int32)
    bits += torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=bits.device)
    bits &= -(1 << 16)
    target.copy_(bits.view(torch.float32))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's own part as a flat view; under FSDP a parameter is a tensor over all of them."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.detach().view(-1)
