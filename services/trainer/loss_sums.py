"""Losses added up for thinking and for answers, over micro-batches and processes. Needs torch."""

from __future__ import annotations

from typing import Any

import torch


class LossSums:
    """Sums and numbers of losses, for thinking and answers; stays on the device until it is read."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(
            5, dtype=torch.float64, device=device
        )  # think, its tokens, answer, its tokens, weighted

    def add(self, losses: torch.Tensor, batch: dict[str, Any]) -> None:
        answer, weights = batch["is_answer"].double(), batch["weights"].double()
        losses = losses.double()
        think = 1 - answer
        parts = ((losses * think).sum(), think.sum(), (losses * answer).sum(), answer.sum(), (losses * weights).sum())
        self.sums += torch.stack(parts)

    def means(self, gathered: torch.Tensor, think_weight: float) -> dict[str, float]:
        """Means a token; a part without tokens is left out."""
        think, thinks, answer, answers, weighted = gathered.tolist()
        means = {"loss": weighted / max(think_weight * thinks + answers, 1e-9)}
        if thinks:
            means["think_loss"] = think / thinks
        if answers:
            means["answer_loss"] = answer / answers
        return means
