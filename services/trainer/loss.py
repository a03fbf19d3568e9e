"""Cross-entropy over the supervised tokens alone, a chunk of them at a time. Needs torch; works on the CPU and on a GPU.

Logits of a whole batch are the largest thing in a fine-tune: 151,936 columns, and as many gradients. Here they exist for one
chunk, and their gradient is taken while they do, so nothing is kept for the backward pass but the gradient of the inputs.
"""

from __future__ import annotations

from typing import Any

import torch

# Logits of one chunk: 40 million in fp32 are 160 MB, which is 263 positions of Qwen3's vocabulary. Fewer would read the head's
# weight too often, more would show in the peak.
MOST_LOGITS = 40_000_000


def chunk_positions(vocabulary: int, most: int) -> int:
    """Positions of one chunk: `most`, or fewer where the vocabulary is large."""
    return max(1, min(most, MOST_LOGITS // vocabulary))


def supervised_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, chunk: int = 1024
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sum of the targets' negative log-likelihoods, and each of them.

    `hidden` [n, h] are the last layer's outputs where a supervised token comes next, `weight` [v, h] the LM head, `targets`
    [n] the tokens' ids, `weights` [n] what each counts for. Returns a scalar with a gradient and [n] without one, both in
    fp32 and in nats. n may be 0. Products are made in `hidden`'s type, or autocast's where that is on; softmax and sums in fp32.
    """
    total, losses = _SupervisedCrossEntropy.apply(hidden, weight, targets, weights, chunk)
    return total, losses


class _SupervisedCrossEntropy(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """d loss_i / d logits_i = softmax(logits_i) - onehot(target_i), so the gradient is ready when the loss is."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, chunk: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        # In the weight's own type: a second copy in fp32 would be 1.2 GB for Qwen3-1.7B, and a step has few chunks.
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        losses = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        step = chunk_positions(weight.shape[0], chunk)
        with torch.autocast(device, enabled=False):
            head = weight.to(dtype)
            for start in range(0, hidden.shape[0], step):
                part = slice(start, start + step)
                inputs = hidden[part].to(dtype)
                losses[part], gradient = _chunk_loss(inputs @ head.t(), targets[part], wants_hidden or wants_weight)
                if gradient is None:
                    continue
                gradient = gradient.mul_(weights[part, None]).to(dtype)
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
        return (*gradients, None, None, None)


def _chunk_loss(
    logits: torch.Tensor, targets: torch.Tensor, wants_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Losses [n] and, if wanted, their gradient [n, v], in fp32 and in place of the logits."""
    scores = logits.float()
    scores -= scores.amax(dim=-1, keepdim=True)
    index = targets[:, None]
    at_target = scores.gather(1, index)[:, 0]
    scores.exp_()
    sums = scores.sum(dim=-1)
    losses = sums.log() - at_target
    if not wants_gradient:
        return losses, None
    scores /= sums[:, None]
    scores.scatter_add_(1, index, torch.full_like(index, -1, dtype=scores.dtype))
    return losses, scores
