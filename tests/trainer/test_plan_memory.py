"""The planner's account against numbers that were measured on a GPU, and against an earlier account of the same runs.

All are of Qwen3-1.7B's shape. They were measured with a loop that keeps the logits of two chunks for a moment (12 bytes each),
with gradients of one micro-batch only, and with peft's adapters: the `Load`s say so. The trainer's own loop needs less.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from services.trainer.config import ALL_LINEAR
from services.trainer.memory import GB, PARTS, Load, Shape, measure_memory, trainable_parameters
from tests.trainer.true_shape import QWEN3_1_7B

SHAPE = Shape.of(QWEN3_1_7B)

CHUNKED, WHOLE = {"chunk": 1024, "logits_bytes": 12}, {"logits_bytes": 12}
QV = {"rank": 8, "targets": ("q_proj", "v_proj"), "dropout": 0.05, "adapter_inputs": "cast"}
ALL_WIDE = {"rank": 16, "targets": ALL_LINEAR, "dropout": 0.05, "adapter_inputs": "cast"}
ALL_CAST = ALL_WIDE | {"dropout": 0.0}
ALL_LEAN = ALL_CAST | {"adapter_inputs": "shared", "trained_bytes": 2, "moment_bytes": 2}
BF16 = {"method": "full", "trained_bytes": 2, "moment_bytes": 2}
FP32 = {"method": "full", "base_bytes": 4, "stream_bytes": 4, "autocast": True}


def _load(tokens: int, settings: dict[str, Any], recomputed: bool, loss: dict[str, int]) -> Load:
    common = {"method": "lora", "autocast": False, "accumulates": False, "chunk": tokens, "tokens": tokens}
    return Load(**(common | loss | settings | {"checkpointing": recomputed}))


def _gb(load: Load) -> float:
    return measure_memory(SHAPE, load).peak / GB


# torch.cuda.max_memory_allocated on one H100 of 80 GB (torch 2.11, transformers 5.17), random weights, full-length rows.
MEASURED = [
    (4096, QV, False, WHOLE, 22.3),
    (8192, QV, False, WHOLE, 41.0),
    (4096, QV, False, CHUNKED, 16.7),
    (8192, QV, False, CHUNKED, 28.0),
    (4096, QV, True, WHOLE, 11.5),
    (8192, QV, True, WHOLE, 19.5),
    (4096, QV, True, CHUNKED, 6.0),
    (8192, QV, True, CHUNKED, 6.6),
    (4096, ALL_WIDE, False, CHUNKED, 25.2),
    (4096, ALL_LEAN, False, CHUNKED, 16.9),
    (16384, ALL_CAST, True, CHUNKED, 9.0),
    (2048, BF16, True, WHOLE, 15.1),
    (8192, BF16, True, CHUNKED, 15.0),
    (8192, BF16, False, CHUNKED, 39.0),
]


@pytest.mark.parametrize(("tokens", "settings", "recomputed", "loss", "gb"), MEASURED)
def test_the_account_agrees_with_a_gpu(
    tokens: int, settings: dict[str, Any], recomputed: bool, loss: dict[str, int], gb: float
) -> None:
    assert _gb(_load(tokens, settings, recomputed, loss)) == pytest.approx(gb, rel=0.04)


# An account by tensor, of the same runs on a CPU: dropout's mask is as wide there as what it drops. The chunk is not recorded.
ACCOUNTED = [
    (4096, QV, False, WHOLE, 24.3),
    (8192, QV, False, WHOLE, 45.5),
    (4096, QV, False, CHUNKED, 17.3),
    (8192, QV, False, CHUNKED, 31.1),
    (4096, QV, True, WHOLE, 11.4),
    (8192, QV, True, WHOLE, 19.4),
    (8192, QV, True, CHUNKED, 5.8),
    (2048, QV, False, WHOLE, 13.8),
    (1024, QV, False, WHOLE, 8.7),
    (3400, QV, True, WHOLE, 10.1),
    (2800, QV, True, WHOLE, 8.9),
    (8192, ALL_WIDE, False, CHUNKED, 57.7),
    (8192, ALL_WIDE, True, CHUNKED, 7.1),
    (4096, ALL_WIDE, False, CHUNKED, 31.4),
    (16384, ALL_WIDE, True, CHUNKED, 9.8),
    (2048, FP32, False, WHOLE, 36.0),
    (4096, FP32, False, WHOLE, 47.6),
    (8192, FP32, False, WHOLE, 71.7),
    (2048, FP32, True, WHOLE, 30.0),
    (8192, FP32, True, WHOLE, 38.7),
    (8192, FP32, True, CHUNKED, 30.7),
    (2048, BF16, True, WHOLE, 15.0),
    (4096, BF16, True, WHOLE, 18.3),
    (8192, BF16, True, WHOLE, 26.4),
    (8192, BF16, True, CHUNKED, 15.0),
    (2048, BF16, False, CHUNKED, 18.9),
    (4096, BF16, False, CHUNKED, 25.6),
    (8192, BF16, False, CHUNKED, 39.8),
]


@pytest.mark.parametrize(("tokens", "settings", "recomputed", "loss", "gb"), ACCOUNTED)
def test_the_account_agrees_with_an_earlier_one(
    tokens: int, settings: dict[str, Any], recomputed: bool, loss: dict[str, int], gb: float
) -> None:
    on_cpu = {"mask_bytes": 4} if settings.get("dropout") else {}
    assert _gb(_load(tokens, settings | on_cpu, recomputed, loss)) == pytest.approx(gb, rel=0.12)


def test_the_articles_preset_trains_this_many_parameters() -> None:
    load = _load(1, QV, False, WHOLE)
    assert SHAPE.parameters == 1_720_574_976
    assert trainable_parameters(SHAPE, load) == 1_605_632
    assert SHAPE.parameters + trainable_parameters(SHAPE, load) == 1_722_180_608


def test_an_untied_head_counts() -> None:
    untied = Shape.of(QWEN3_1_7B | {"tie_word_embeddings": False})
    assert untied.parameters == SHAPE.parameters + 151_936 * 2048


def test_the_parts_add_up_to_the_peak() -> None:
    memory = measure_memory(SHAPE, _load(8192, BF16, False, CHUNKED))
    assert set(memory.parts) == set(PARTS)
    assert memory.peak == sum(memory.parts.values())
    assert memory.parts["weights"] == 2 * SHAPE.parameters
    assert memory.parts["optimizer"] == 4 * SHAPE.parameters


@pytest.mark.parametrize("change", [{"tokens": 8193}, {"rank": 32}, {"trained_bytes": 8}, {"accumulates": True}])
def test_more_of_anything_needs_more(change: dict[str, Any]) -> None:
    load = _load(8192, ALL_LEAN, False, CHUNKED)
    assert _gb(dataclasses.replace(load, **change)) > _gb(load)


def test_devices_that_share_a_full_fine_tune_each_need_less() -> None:
    alone, of_two, of_eight = (
        _gb(dataclasses.replace(_load(8192, BF16, True, CHUNKED), shards=shards)) for shards in (1, 2, 8)
    )
    assert alone > of_two > of_eight > 2 * SHAPE.embedding / GB
