"""Looks at every number of a safetensors file, a block at a time: a model of any size needs no memory. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from services.contract.adapter_files import AdapterError, TensorRecord
from services.contract.adapter_fit import LARGEST_WEIGHT

_BLOCK = 16 * 1024 * 1024  # a multiple of every type's size
# Per type: unsigned integers of its width, its exponent's bits (all set in NaN and infinity only), and its sign's bit.
_BITS: dict[str, tuple[str, int, int]] = {
    "F32": ("<u4", 0x7F800000, 0x80000000),
    "F16": ("<u2", 0x7C00, 0x8000),
    "BF16": ("<u2", 0x7F80, 0x8000),
}


def check_finite(path: Path, tensors: Mapping[str, TensorRecord]) -> None:
    """Raises `AdapterError` for the first tensor with NaN or infinity, or of a type that is no usual float."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _BITS:
            raise AdapterError(f"{name[:120]!r} is of type {tensor.dtype}: only {', '.join(_BITS)} can be served")
        _, exponent, _ = _BITS[tensor.dtype]
        for bits in _blocks(path, tensor):
            if ((bits & exponent) == exponent).any():
                raise AdapterError(
                    f"{name[:120]!r} in {path.name} holds NaN or infinity: training diverged, train again at a lower rate"
                )


def check_size(path: Path, tensors: Mapping[str, TensorRecord]) -> None:
    """Raises `AdapterError` for weights so large that the servers refuse them; finite ones (`check_finite`) only."""
    for name, tensor in tensors.items():
        _, _, sign = _BITS[tensor.dtype]
        # Without their signs, floats of one type are ordered as their bits are.
        most = _bits_of(LARGEST_WEIGHT, tensor.dtype)
        if any(((bits & (sign - 1)) > most).any() for bits in _blocks(path, tensor)):
            raise AdapterError(
                f"{name[:120]!r} holds weights above {LARGEST_WEIGHT:g}, which no server loads: train again at a lower rate"
            )


def _bits_of(value: float, dtype: str) -> int:
    bits = np.array([value], "<f2" if dtype == "F16" else "<f4").view("<u2" if dtype == "F16" else "<u4")[0]
    return int(bits) >> 16 if dtype == "BF16" else int(bits)


def check_trained(path: Path, tensors: Mapping[str, TensorRecord]) -> None:
    """Raises `AdapterError` when every `lora_B` is zero, as it is before the first step of training."""
    for name, tensor in tensors.items():
        if ".lora_B." in name:
            _, _, sign = _BITS[tensor.dtype]
            if any((bits & (sign - 1)).any() for bits in _blocks(path, tensor)):
                return
    raise AdapterError("every lora_B is zero, so the adapter changes nothing: train it for at least one step")


def _blocks(path: Path, tensor: TensorRecord) -> Iterator[np.ndarray[Any, Any]]:
    """The tensor's values as unsigned integers, without their shape."""
    begin, after = tensor.data_offsets
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        file.seek(start + begin)
        while begin < after:
            block = file.read(min(_BLOCK, after - begin))
            if not block:
                raise AdapterError(f"{path.name} ends too early: truncated while it was read?")
            yield np.frombuffer(block, _BITS[tensor.dtype][0])
            begin += len(block)
