"""Causal attention over packed rows, where no token sees another row's, as functions that transformers' Qwen3 calls.

`register` adds them to transformers' `AttentionInterface`; `choose` says which one a run uses. Each takes the borders of the
rows instead of a mask: a mask of a pack is as large as the pack's length squared and keeps SDPA from its flash kernel.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from services.trainer.errors import TrainError

PREFIX = "medthink_"
FLASH, VARLEN, SDPA = "flash_attention_2", "varlen", "sdpa"


def choose(setting: str, device: str, dtype: torch.dtype) -> str:
    """`setting` with auto resolved. Raises `TrainError` for one that cannot work with this device and type."""
    if setting == SDPA:
        return SDPA
    has_kernels = device == "cuda" and dtype != torch.float32 and torch.cuda.get_device_capability() >= (8, 0)
    has_flash = importlib.util.find_spec("flash_attn") is not None
    has_varlen = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    if setting == "auto":
        return SDPA if not has_kernels else FLASH if has_flash else VARLEN if has_varlen else SDPA
    if not has_kernels:
        raise TrainError(f"attention {setting} needs bf16 on a GPU of compute capability 8.0 or more: say auto")
    if setting == FLASH and not has_flash:
        raise TrainError("attention flash_attention_2 needs the package flash-attn: install it, or say auto")
    if setting == VARLEN and not has_varlen:
        raise TrainError(f"attention varlen is not in torch {torch.__version__}: say auto")
    return setting


def register(name: str) -> str:
    """Makes an implementation known to transformers; returns the name to load a model with."""
    AttentionInterface.register(PREFIX + name, {FLASH: _flash, SDPA: _sdpa}[name] if name != VARLEN else _make_varlen())
    return PREFIX + name


def borders(implementation: str, row_ends: torch.Tensor, row_lengths: tuple[int, ...]) -> dict[str, Any]:
    """What an implementation, by its registered name, needs of the rows' borders; not more, so that a compiled layer is the
    same for all packs: the kernels take an upper bound of the longest row, and powers of two are few."""
    if implementation == PREFIX + SDPA:
        return {"row_lengths": row_lengths}
    return {"row_ends": row_ends, "longest": 1 << (max(row_lengths) - 1).bit_length()}


def _sdpa(
    _module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: None,
    scaling: float,
    row_lengths: tuple[int, ...] | None = None,
    **_unused: Any,
) -> tuple[torch.Tensor, None]:
    """[batch, heads, length, size] to [batch, length, heads, size]; `row_lengths` cut the length, `None` is one row each.

    Row by row: a block-diagonal mask gives the same numbers, but its time grows with the square of the pack.
    """
    lengths = row_lengths or (query.shape[2],)
    rows = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [
        functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        for q, k, v in rows
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _flash(_module: Any, query: Any, key: Any, value: Any, _mask: None, scaling: float, **borders: Any) -> Any:
    from flash_attn import flash_attn_varlen_func

    q, k, v, ends, longest = _in_one(query, key, value, borders)
    output = flash_attn_varlen_func(q, k, v, ends, ends, longest, longest, softmax_scale=scaling, causal=True)
    return output.view(query.shape[0], query.shape[2], *output.shape[1:]), None


def _make_varlen() -> Callable[..., Any]:
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}  # torch 2.10
    if "enable_gqa" in known:  # before torch 2.12 it takes fewer keys than queries without being told
        options["enable_gqa"] = True
    takes_scale = "scale" in known

    def _varlen(_module: Any, query: Any, key: Any, value: Any, _mask: None, scaling: float, **borders: Any) -> Any:
        q, k, v, ends, longest = _in_one(query, key, value, borders)
        scale = {"scale": scaling} if takes_scale else {}  # else it is 1 / sqrt(size), which is Qwen3's
        output = varlen_attn(q, k, v, ends, ends, longest, longest, **options, **scale)
        return output.view(query.shape[0], query.shape[2], *output.shape[1:]), None

    return _varlen


def _in_one(query: Any, key: Any, value: Any, borders: dict[str, Any]) -> tuple[Any, Any, Any, Any, int]:
    """[tokens, heads, size] each, where rows begin and end [rows + 1], and a bound of the longest row's length."""
    batch, _, length, _ = query.shape
    flat = [tensor.transpose(1, 2).reshape(batch * length, tensor.shape[1], -1) for tensor in (query, key, value)]
    ends = borders.get("row_ends")
    if ends is None:
        ends = torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=query.device)
        return flat[0], flat[1], flat[2], ends, length
    return flat[0], flat[1], flat[2], ends, borders["longest"]
