"""The training loop of the demo model.

A plain loop, not Hugging Face's Trainer, which is for adapters: a step here lasts some milliseconds, so that the work
of the Trainer around a step would outlast the step, and every epoch's rows are made anew.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from services.trainer.demo.epochs import EpochBatches
from services.trainer.demo.gradients import Gradients
from services.trainer.demo.recipe import Recipe


def pick_device(name: str) -> str:
    """`auto` is the GPU where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def train(
    model: Any, batches_of: EpochBatches, recipe: Recipe, device: str, watch: Callable[[], str] | None = None
) -> float:
    """Trains `model` in place and returns the last epoch's mean loss.

    Weights stay in float32; products run in bfloat16. `watch` is asked after every tenth of the epochs for something to
    print. Same seed, device and library versions give the same weights on the CPU; on a GPU only nearly.
    """
    torch.manual_seed(recipe.seed)
    model.to(device=device, dtype=torch.float32).train()
    dropout = _add_dropout(model, recipe.dropout)
    gradients = Gradients(model, device)
    optimizer = _optimizer(model, recipe)
    progress = Progress(recipe.epochs)
    mean = math.nan
    for epoch in range(recipe.epochs):
        batches = batches_of(epoch)
        total = torch.zeros((), device=device)
        for i, batch in enumerate(batches):
            rate = recipe.learning_rate * schedule((epoch + i / len(batches)) / recipe.epochs, recipe.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            total += gradients.compute(batch)
            torch.nn.utils.clip_grad_norm_(gradients.parameters, 1.0)
            optimizer.step()
            progress.show(epoch + (i + 1) / len(batches))
        mean = total.item() / len(batches)
        progress.loss = mean
        if watch is not None and (epoch + 1) % max(1, recipe.epochs // 10) == 0:
            progress.note(f"epoch {epoch + 1}: loss {mean:.4f}; {watch()}")
            model.train()
    for handle in dropout:
        handle.remove()
    for parameter in gradients.parameters:
        parameter.grad = None
    progress.note(f"trained {recipe.epochs} epochs in {progress.elapsed_s():.0f} s on {device}, loss {mean:.4f}")
    model.eval()
    return mean


def schedule(done: float, warmup: float) -> float:
    """Factor of the learning rate after the share `done` of training: linear up, then half a cosine down to 0.01."""
    if done < warmup:
        return max(done / warmup, 0.01)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _optimizer(model: Any, recipe: Recipe) -> Any:
    """AdamW without decay for norms."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def _add_dropout(model: Any, share: float) -> list[Any]:
    """Dropout that Qwen3's code lacks, as hooks that training takes off again."""
    if share == 0:
        return []

    def drop(_module: Any, _inputs: Any, output: Any) -> Any:
        return functional.dropout(output, share, training=True)

    places = [model.model.embed_tokens]
    for layer in model.model.layers:
        places += [layer.self_attn.o_proj, layer.mlp.down_proj]
    return [place.register_forward_hook(_only_in_training(drop)) for place in places]


def _only_in_training(hook: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    return lambda module, inputs, output: hook(module, inputs, output) if module.training else output


class Progress:
    """How far training is, its loss and when it will end: one line, or a line a minute where there is no terminal."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.loss = math.nan
        self._started = time.monotonic()
        self._shown = self._started
        self._is_terminal = sys.stderr.isatty()

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def show(self, epoch: float) -> None:
        now = time.monotonic()
        if now - self._shown < (0.5 if self._is_terminal else 60):
            return
        self._shown = now
        left_s = self.elapsed_s() / epoch * (self.epochs - epoch)
        filled = int(30 * epoch / self.epochs)
        bar = "#" * filled + "." * (30 - filled)
        text = f"[{bar}] epoch {epoch:.1f}/{self.epochs} loss {self.loss:.4f} left {left_s / 60:.1f} min"
        print(
            f"\r{text}   " if self._is_terminal else text,
            end="" if self._is_terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def note(self, text: str) -> None:
        print(("\r\033[K" if self._is_terminal else "") + text, file=sys.stderr, flush=True)
