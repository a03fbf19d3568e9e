"""Loss and gradients of a batch: computed as PyTorch does on a CPU, recorded once for each shape and replayed on a GPU.

A model this small keeps a GPU waiting: launching its two thousand little kernels takes several times as long as they
run. A CUDA graph launches them all at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from services.trainer.demo.batches import Batch


@dataclass(frozen=True)
class Recorded:
    """The work for one shape: it reads `inputs`, and leaves the loss in `loss` and the gradients where they belong."""

    graph: Any
    inputs: tuple[Any, Any, Any]
    loss: Any


class Gradients:
    """Fills `p.grad` of every parameter; the same tensors every time, so that recorded work finds them."""

    def __init__(self, model: Any, device: str) -> None:
        self.model = model
        self.device = device
        self.parameters = list(model.parameters())
        self._recorded: dict[tuple[int, ...], Recorded] = {}
        self._pool = torch.cuda.graph_pool_handle() if device == "cuda" else None
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)

    def compute(self, batch: Batch) -> Any:
        """The batch's loss; read it before the next call, which writes into the same tensor."""
        if self.device != "cuda":
            return self._run(*on_device(batch, self.device))
        if batch.ids.shape not in self._recorded:
            self._recorded[batch.ids.shape] = self._record(batch)
        recorded = self._recorded[batch.ids.shape]
        for place, value in zip(recorded.inputs, on_device(batch, "cpu"), strict=True):
            place.copy_(value, non_blocking=True)
        recorded.graph.replay()
        return recorded.loss

    def _run(self, ids: Any, labels: Any, weights: Any) -> Any:
        loss = weighted_loss(self.model, ids, labels, weights)
        gradients = torch.autograd.grad(loss, self.parameters)
        torch._foreach_copy_([p.grad for p in self.parameters], gradients)
        return loss.detach()

    def _record(self, batch: Batch) -> Recorded:
        inputs = on_device(batch, self.device)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # libraries set themselves up at first use, which must not be recorded
                self._run(*inputs)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            loss = self._run(*inputs)
        return Recorded(graph, inputs, loss)


def weighted_loss(model: Any, ids: Any, labels: Any, weights: Any) -> Any:
    """Mean cross-entropy, each token counting by its weight; in bfloat16 with float32 weights.

    No attention mask, said in the form that spares transformers from looking for one: padding stands on the right,
    where a causal model's real tokens never look. Casts are not kept, since a recorded one would outlive its value.
    """
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, cache_enabled=False):
        hidden = model.model(input_ids=ids, attention_mask={"full_attention": None}, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden)
    losses = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def on_device(batch: Batch, device: str) -> tuple[Any, Any, Any]:
    ids, labels = (torch.from_numpy(a).to(device, torch.int64) for a in (batch.ids, batch.labels))
    return ids, labels, torch.from_numpy(batch.weights).to(device)
