"""Whether an adapter is one that the engine can serve on this base model. Both sides ask: the trainer before it publishes,
the API before it loads.

vLLM refuses some of these only at load, some never: it serves an adapter of a deeper model, or one whose module names do
not exist, without a word, and an adapter of another width poisons the base model's answers. So nothing is taken on trust.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from services.contract.adapter_files import AdapterError, TensorRecord

_KEY = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(self_attn|mlp)\.(\w+)\.lora_(A|B)\.weight")
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM can be started with as max_lora_rank
_DTYPES = ("F32", "F16", "BF16")
# Options of peft that change what an adapter computes and that vLLM does not compute, or refuses.
_MUST_BE_UNSET = (
    "use_dora", "modules_to_save", "lora_bias", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern",
    "layer_replication", "megatron_config", "trainable_token_indices", "alora_invocation_tokens", "use_qalora",
    "target_parameters", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip
# A trained weight is rarely above 1, a scale (alpha by rank) rarely above 4; with these products of all stay finite. What
# overflows leaves NaN in the engine's KV cache, whose blocks the base model's requests get next.
LARGEST_WEIGHT = 100.0
LARGEST_SCALE = 100.0
_PLAIN_INITS = (True, False, "gaussian", "orthogonal", None)


def module_sizes(config: Mapping[str, Any]) -> dict[str, tuple[str, int, int]]:
    """Linear modules of a Qwen3 layer: name to (parent, inputs, outputs), from the model's config.json.

    Raises `AdapterError` when that is not the config of a Qwen3 model.
    """
    try:
        hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        heads, kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
        head_dim = int(config.get("head_dim") or hidden // heads)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise AdapterError(f"the base model's config.json is not a Qwen3 model's: {str(error)[:80]}") from error
    return {
        "q_proj": ("self_attn", hidden, heads * head_dim),
        "k_proj": ("self_attn", hidden, kv_heads * head_dim),
        "v_proj": ("self_attn", hidden, kv_heads * head_dim),
        "o_proj": ("self_attn", heads * head_dim, hidden),
        "gate_proj": ("mlp", hidden, inner),
        "up_proj": ("mlp", hidden, inner),
        "down_proj": ("mlp", inner, hidden),
    }


def check_options(adapter: Mapping[str, Any], max_rank: int) -> None:
    """Raises `AdapterError` for options in adapter_config.json that the engine does not serve as they were trained."""
    if adapter.get("peft_type") != "LORA":
        raise AdapterError(f"peft_type is {_short(adapter.get('peft_type'))}: only LORA can be served")
    rank = adapter.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= max_rank:
        raise AdapterError(f"rank {_short(rank)} is not between 1 and {max_rank}, the most this server loads")
    alpha = adapter.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < math.inf:
        raise AdapterError(f"lora_alpha is {_short(alpha)}: it must be a number above 0")
    if alpha > LARGEST_SCALE * rank:
        raise AdapterError(f"lora_alpha is more than {LARGEST_SCALE:g} times the rank: its answers would overflow")
    for option in _MUST_BE_UNSET:
        if adapter.get(option):
            raise AdapterError(f"{option} is set: the engine does not serve it, train without")
    if adapter.get("bias", "none") != "none":
        raise AdapterError("bias is trained: the engine does not serve it, train with bias none")
    if adapter.get("init_lora_weights") not in _PLAIN_INITS:
        raise AdapterError(
            f"init_lora_weights is {_short(adapter['init_lora_weights'])}: such adapters change the base model too, "
            "convert it to a plain LoRA first"
        )


def check_tensors(adapter: Mapping[str, Any], tensors: Mapping[str, TensorRecord], base: Mapping[str, Any]) -> None:
    """Raises `AdapterError` unless the tensors are exactly A and B of every target module of every layer, in the right shapes."""
    sizes, rank = module_sizes(base), int(adapter["r"])
    targets = adapter.get("target_modules")
    if not isinstance(targets, list) or not targets:
        raise AdapterError("target_modules must be a list of module names")
    for target in targets:
        if not isinstance(target, str) or target not in sizes:
            raise AdapterError(f"target module {_short(target)} is none of {', '.join(sizes)}")
    expected: dict[str, tuple[int, int]] = {}
    for layer in range(int(base["num_hidden_layers"])):
        for target in targets:
            parent, inputs, outputs = sizes[target]
            stem = f"base_model.model.model.layers.{layer}.{parent}.{target}"
            expected[f"{stem}.lora_A.weight"] = (rank, inputs)
            expected[f"{stem}.lora_B.weight"] = (outputs, rank)
    _check_keys(tensors, expected)
    for key, shape in expected.items():
        tensor = tensors[key]
        if tensor.shape != shape:
            raise AdapterError(f"{key} has shape {list(tensor.shape)}, this base model needs {list(shape)}")
        if tensor.dtype not in _DTYPES:
            raise AdapterError(f"{key} is of type {tensor.dtype}: only {', '.join(_DTYPES)} can be served")


def _check_keys(tensors: Mapping[str, TensorRecord], expected: Mapping[str, tuple[int, int]]) -> None:
    strange = sorted(key for key in tensors if key not in expected)
    missing = sorted(key for key in expected if key not in tensors)
    if strange:
        form = _KEY.fullmatch(strange[0])
        why = "no module of this base model" if form else "no tensor of a Qwen3 adapter"
        raise AdapterError(f"{_short(strange[0])} is {why} ({len(strange)} such): trained on another model?")
    if missing:
        raise AdapterError(f"{missing[0]} is missing ({len(missing)} such): not saved whole?")


def engine_rank(rank: int) -> int:
    """The smallest `max_lora_rank` of vLLM that holds this rank; raises `AdapterError` above the largest."""
    for most in _RANKS:
        if most >= rank:
            return most
    raise AdapterError(f"rank {rank} is more than the engine can be started with, {_RANKS[-1]}")


def _short(value: object) -> str:
    """Foreign data for a message: on one line, and no longer than a line."""
    return repr(value)[:120]
