"""What to change so that a run fits, cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.trainer.config import PRESETS, TrainConfig, make_config

_SMALLEST_BATCH = 2048  # tokens; below, a GPU waits for its launches more than it works
_SHORTEST_ROW = 256  # tokens; below, there is no room for a thought and an answer


@dataclass(frozen=True)
class Change:
    """Settings to give, and what they cost."""

    settings: dict[str, Any]
    cost: str


@dataclass(frozen=True)
class Advice:
    """The changes that make a run fit, with its peak then; `fits` false: the most that can be done, which is not enough."""

    changes: tuple[Change, ...]
    peak: int
    fits: bool
    settings: dict[str, Any] = field(default_factory=dict)


def advise(config: TrainConfig, longest: int, peak_of: Callable[[TrainConfig], int], limit: int) -> Advice:
    """`longest` row in tokens; `peak_of` gives a config's peak in bytes, all included; `limit` in bytes.

    Takes changes in the order of their cost until the run fits, then leaves out those that were not needed for it.
    """
    taken: list[Change] = []
    best = Advice((), peak_of(config), fits=False)
    for change in _changes(config, longest):
        taken = [c for c in taken if not set(c.settings) & set(change.settings)] + [change]
        peak = peak_of(_changed(config, taken))
        if peak <= limit:
            kept = _needed(config, taken, peak_of, limit)
            return Advice(tuple(kept), peak_of(_changed(config, kept)), True, _settings(kept))
        if peak < best.peak:
            best = Advice(tuple(taken), peak, False, _settings(taken))
    return best


def _changes(config: TrainConfig, longest: int) -> Iterator[Change]:
    yield from _smaller_batches(config, longest)
    if config.gradient_checkpointing == "off":
        yield Change({"gradient_checkpointing": "auto"}, "about a third more time, the same result")
    if config.method == "lora" and config.weights_dtype == "fp32" and config.precision == "bf16":
        yield Change({"trained_weights": "bf16"}, "adapters are multiplied in bf16, as they are served")
    if config.method == "lora" and config.dropout:
        yield Change({"dropout": 0.0}, "no dropout; early stopping guards against learning by heart")
    if config.method == "full" and config.precision == "fp32":
        yield Change({"precision": "bf16"}, "bf16, as Qwen3 was trained")
    if config.method == "full" and config.weights_dtype == "fp32":
        yield Change(
            {"trained_weights": "bf16", "precision": "bf16"}, "weights and moments in bf16, rounded stochastically"
        )
    if config.method == "lora" and config.precision == "fp32":
        yield Change({"precision": "bf16"}, "bf16, as Qwen3 was trained and is served; slow on CPUs without it")
    if config.method == "full" and config.gradient_accumulation > 1:
        smallest = list(_smaller_batches(config, longest))[-1:]
        settings = (smallest[0].settings if smallest else {}) | {"gradient_accumulation": 1}
        yield Change(settings, "smaller optimizer steps: gradients are not kept from one micro-batch to the next")
    if config.method == "full":
        lora = {"method": "lora", "learning_rate": PRESETS["default"]["learning_rate"], "epochs": 3.0}
        yield Change(lora, "an adapter beside the frozen base, not a model of its own")
    shorter = min(longest, config.max_length) // 2
    if shorter >= _SHORTEST_ROW:
        batch = _batch(config, shorter if config.packing else 1)
        yield Change({**batch, "max_length": shorter}, "longer rows are lost: run `prepare` again with it")


def _smaller_batches(config: TrainConfig, longest: int) -> Iterator[Change]:
    """Half the micro-batch and twice as many of them, as long as the longest row fits: the same optimizer steps."""
    size = config.batch_tokens if config.packing else config.batch_size
    floor = max(longest, min(_SMALLEST_BATCH, size)) if config.packing else 1
    while size > floor:
        size = max(size // 2, floor)
        settings = _batch(config, size)
        if config.packing and size < config.max_length:
            settings["max_length"] = size  # no row is as long
        yield Change(settings, "the same steps in smaller pieces, a little slower")


def _batch(config: TrainConfig, size: int) -> dict[str, Any]:
    """A smaller micro-batch, in tokens or rows, and as many more of them a step."""
    name, before = ("batch_tokens", config.batch_tokens) if config.packing else ("batch_size", config.batch_size)
    return {name: size, "gradient_accumulation": config.gradient_accumulation * -(-before // size)}


def _needed(
    config: TrainConfig, changes: Sequence[Change], peak_of: Callable[[TrainConfig], int], limit: int
) -> list[Change]:
    kept = list(changes)
    for change in reversed(changes[:-1]):
        without = [c for c in kept if c is not change]
        if peak_of(_changed(config, without)) <= limit:
            kept = without
    return kept


def _changed(config: TrainConfig, changes: Sequence[Change]) -> TrainConfig:
    return make_config(config.as_dict() | _settings(changes))


def _settings(changes: Sequence[Change]) -> dict[str, Any]:
    return {name: value for change in changes for name, value in change.settings.items()}
