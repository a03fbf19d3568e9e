"""Cross-entropy over the supervised tokens alone, a chunk of them at a time. Needs torch; works on the CPU and on a GPU.

Logits of a whole batch are the largest thing in a fine-tune: 151,936 columns, and as many gradients. Here they exist for one
chunk, and their gradient is taken while they do, so nothing is kept for the backward pass but the gradient of the inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

# Logits of one chunk: 40 million in fp32 are 160 MB, which is 263 positions of Qwen3's vocabulary. Fewer would read the head's
# weight too often, more would show in the peak.
MOST_LOGITS = 40_000_000


def chunk_positions(vocabulary: int, most: int) -> int:
    """Positions of one chunk: `most`, or fewer where the vocabulary is large."""
    return max(1, min(most, MOST_LOGITS // vocabulary))


def supervised_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    chunk: int = 1024,
    compiled: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sum of the targets' negative log-likelihoods, and each of them.

    `hidden` [n, h] are the last layer's outputs where a supervised token comes next, `weight` [v, h] the LM head, `targets`
    [n] the tokens' ids, `weights` [n] what each counts for. Returns a scalar with a gradient and [n] without one, both in
    fp32 and in nats. n may be 0. Products are made in `hidden`'s type, or autocast's where that is on; softmax and sums in fp32.
    `compiled`: softmax and its gradient by one kernel that torch makes for this GPU, instead of ten passes over the logits.
    """
    total, losses = _SupervisedCrossEntropy.apply(hidden, weight, targets, weights, chunk, compiled)
    return total, losses


class _SupervisedCrossEntropy(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """d loss_i / d logits_i = softmax(logits_i) - onehot(target_i), so the gradient is ready when the loss is."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        chunk: int,
        compiled: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        # In the weight's own type: a second copy in fp32 would be 1.2 GB for Qwen3-1.7B, and a step has few chunks.
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        losses = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        compiled = compiled and (wants_hidden or wants_weight)
        loss_of = _compiled_loss() if compiled else _chunk_loss
        # Compiled, a logit takes 4 bytes (it and its gradient) instead of 8: twice as many for the same memory.
        step = min(chunk, (1 + compiled) * chunk_positions(weight.shape[0], chunk))
        with torch.autocast(device, enabled=False):
            head = weight.to(dtype)
            for start in range(0, hidden.shape[0], step):
                part = slice(start, start + step)
                inputs = hidden[part].to(dtype)
                counts = weights[part] if wants_hidden or wants_weight else None
                losses[part], gradient = loss_of(inputs @ head.t(), targets[part], counts)
                if gradient is None:
                    continue
                if grad_hidden is not None:
                    grad_hidden[part] = (gradient @ head).to(hidden.dtype)
                if grad_weight is not None and weight.dtype == dtype:
                    grad_weight.addmm_(gradient.t(), inputs)
                elif grad_weight is not None:
                    grad_weight += gradient.t() @ inputs
        ctx.gradients = (grad_hidden, grad_weight)
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, _grad_losses: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were used up by the first backward pass")
        gradients, ctx.gradients = ctx.gradients, None
        for gradient in gradients:
            if gradient is not None:
                gradient *= grad_total  # in place: a copy of the head's gradient would be 0.6 GB
        return (*gradients, None, None, None, None)


def _chunk_loss(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Losses [n] in fp32 and, where they have weights, the gradient [n, v] of their weighted sum in the logits' type."""
    scores = logits.float()
    scores -= scores.amax(dim=-1, keepdim=True)
    index = targets[:, None]
    at_target = scores.gather(1, index)[:, 0]
    scores.exp_()
    sums = scores.sum(dim=-1)
    losses = sums.log() - at_target
    if weights is None:
        return losses, None
    scores /= sums[:, None]
    scores.scatter_add_(1, index, torch.full_like(index, -1, dtype=scores.dtype))
    return losses, scores.mul_(weights[:, None]).to(logits.dtype)


def fused_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`_chunk_loss` as a compiler likes it: nothing in place, and no scatter."""
    scores = logits.float()
    log_sums = scores.logsumexp(dim=-1)
    losses = log_sums - logits.gather(1, targets[:, None])[:, 0].float()
    is_target = torch.arange(logits.shape[1], device=logits.device)[None] == targets[:, None]
    gradient = ((scores - log_sums[:, None]).exp() - is_target.float()) * weights[:, None]
    return losses, gradient.to(logits.dtype)


@functools.cache
def _compiled_loss() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    compiled: Callable[..., tuple[torch.Tensor, torch.Tensor]] = torch.compile(fused_loss, dynamic=True)
    return compiled
