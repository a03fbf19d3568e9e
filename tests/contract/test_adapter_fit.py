"""What the engine cannot serve as it was trained is refused, and for the right reason."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contract import adapter_fit
from services.contract.adapter_files import AdapterError, TensorRecord
from services.contract.adapter_fit import check_options, check_tensors, engine_rank, module_sizes
from tests.trainer.adapters import ALL_LINEAR, Tensors, adapter_config, adapter_tensors, base_config

QWEN3 = {
    "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip


def records(tensors: Tensors) -> dict[str, TensorRecord]:
    types = {"float32": "F32", "float64": "F64", "float16": "F16"}
    return {
        name: TensorRecord(dtype=types[values.dtype.name], shape=values.shape, data_offsets=(0, values.nbytes))
        for name, values in tensors.items()
    }


# Options


@pytest.mark.parametrize("rank", [1, 8, 16, 32])
@pytest.mark.parametrize("init", [True, False, None, "gaussian", "orthogonal"])
def test_a_plain_lora_of_a_rank_that_fits_is_served(rank: int, init: object) -> None:
    check_options(adapter_config(r=rank, init_lora_weights=init, use_rslora=True, modules_to_save=None), 32)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"peft_type": None}, "only LORA"),
        ({"r": 33}, "rank 33 is not between 1 and 32"),
        ({"r": 0}, "rank 0"),
        ({"r": True}, "rank True"),
        ({"r": "8"}, "rank '8'"),
        ({"r": 8.0}, "rank 8.0"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias"),
        ({"bias": "lora_only"}, "bias"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"layers_to_transform": [0, 1]}, "layers_to_transform"),
        ({"layer_replication": [[0, 4], [2, 8]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["weight"]}, "target_parameters"),
        ({"use_qalora": True}, "use_qalora"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights"),
        ({"init_lora_weights": "corda"}, "init_lora_weights"),
    ],
    ids=str,
)
def test_options_that_the_engine_does_not_serve_are_named(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(AdapterError) as refused:
        check_options(adapter_config(**options), 32)
    assert reason in str(refused.value)


@pytest.mark.parametrize("option", ["peft_type", "r", "lora_alpha"])
def test_an_option_that_is_needed_and_missing_is_named(option: str) -> None:
    config = adapter_config()
    del config[option]
    with pytest.raises(AdapterError, match=r"peft_type|rank|lora_alpha"):
        check_options(config, 32)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(option=st.sampled_from([*adapter_config(), "init_lora_weights", "use_dora", "rank_pattern"]), value=json_values)
def test_a_config_of_any_content_is_served_or_refused_in_one_line(option: str, value: Any) -> None:
    config = adapter_config(**{option: value})
    try:
        check_options(config, 32)
        check_tensors(config, records(adapter_tensors()), base_config())
    except AdapterError as error:
        lines = str(error).splitlines()
        if len(lines) != 1 or len(lines[0]) > 400:
            pytest.fail(f"not one line: {error}")


@pytest.mark.torch
def test_every_option_of_this_peft_is_checked_or_known_to_be_harmless() -> None:
    """A new peft with a new option must be looked at before it is trusted: the engine ignores what it does not know."""
    from peft import LoraConfig

    checked = {
        *adapter_fit._MUST_BE_UNSET,
        "peft_type",
        "r",
        "lora_alpha",
        "bias",
        "init_lora_weights",
        "target_modules",
    }
    seen_in_the_tensors = {"exclude_modules"}
    only_for_training = {"lora_dropout", "inference_mode", "runtime_config", "velora_config", "qalora_group_size"}
    only_for_their_init = {"loftq_config", "eva_config", "corda_config", "lora_ga_config"}
    served = {"use_rslora"}
    about_the_base = {
        "task_type", "base_model_name_or_path", "revision", "auto_mapping", "peft_version", "megatron_core",
        "fan_in_fan_out", "ensure_weight_tying",
    }  # fmt: skip
    known = checked | seen_in_the_tensors | only_for_training | only_for_their_init | served | about_the_base
    assert {field.name for field in fields(LoraConfig)} - known == set()


# Tensors


def test_sizes_of_the_served_model_are_those_of_its_config() -> None:
    sizes = module_sizes(QWEN3)
    assert sizes["q_proj"] == ("self_attn", 2048, 2048)
    assert sizes["k_proj"] == sizes["v_proj"] == ("self_attn", 2048, 1024)
    assert sizes["o_proj"] == ("self_attn", 2048, 2048)
    assert sizes["gate_proj"] == sizes["up_proj"] == ("mlp", 2048, 6144)
    assert sizes["down_proj"] == ("mlp", 6144, 2048)
    # The article's preset, rank 8 on q and v: A and B of both in 28 layers (research: 1,605,632 weights)
    assert 28 * 8 * sum(sum(sizes[target][1:]) for target in ("q_proj", "v_proj")) == 1_605_632


@pytest.mark.parametrize("lack", ["hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"])
def test_a_base_that_is_no_qwen3_is_refused(lack: str) -> None:
    with pytest.raises(AdapterError, match="not a Qwen3 model's"):
        module_sizes({key: value for key, value in QWEN3.items() if key != lack})


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ALL_LINEAR, ("down_proj",)], ids=str)
@pytest.mark.parametrize("rank", [1, 8, 16])
def test_a_whole_adapter_of_this_base_fits(targets: tuple[str, ...], rank: int) -> None:
    config = adapter_config(r=rank, target_modules=list(targets))
    check_tensors(config, records(adapter_tensors(rank, targets)), base_config())


def drop_last(tensors: Tensors) -> None:
    tensors.popitem()


def rename(tensors: Tensors) -> None:
    for key in list(tensors):
        tensors[key.replace("model.model.layers", "transformer.h")] = tensors.pop(key)


def double(tensors: Tensors) -> None:
    key = next(iter(tensors))
    tensors[key] = tensors[key].astype(np.float64)


def transpose(tensors: Tensors) -> None:
    key = next(iter(tensors))
    tensors[key] = tensors[key].T


def embed(tensors: Tensors) -> None:
    tensors["base_model.model.model.embed_tokens.weight"] = np.zeros((4, 4), np.float32)


def shout(tensors: Tensors) -> None:
    tensors["a\nb\x1b[31m"] = np.zeros(1, np.float32)


def magnitude(tensors: Tensors) -> None:
    key = next(iter(tensors)).replace("lora_A.weight", "lora_magnitude_vector")
    tensors[key] = np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (drop_last, "is missing"),
        (rename, "no tensor of a Qwen3 adapter"),
        (double, "of type F64"),
        (transpose, "has shape"),
        (embed, "no tensor of a Qwen3 adapter"),
        (shout, "no tensor of a Qwen3 adapter"),
        (magnitude, "no tensor of a Qwen3 adapter"),
    ],
)
def test_tensors_that_the_engine_would_misread_are_refused(change: Any, reason: str) -> None:
    tensors = adapter_tensors()
    change(tensors)
    with pytest.raises(AdapterError, match=reason) as refused:
        check_tensors(adapter_config(), records(tensors), base_config())
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("size", "factor", "reason"),
    [
        ("num_hidden_layers", 2, "no module of this base model"),
        ("num_hidden_layers", 0.5, "is missing"),
        ("hidden_size", 2, "this base model needs"),
        ("hidden_size", 0.5, "this base model needs"),
        ("num_key_value_heads", 2, "this base model needs"),
    ],
)
def test_an_adapter_of_another_model_is_refused(size: str, factor: float, reason: str) -> None:
    tensors = adapter_tensors(**{size: int(base_config()[size] * factor)})
    with pytest.raises(AdapterError, match=reason):
        check_tensors(adapter_config(), records(tensors), base_config())


@pytest.mark.parametrize("rank", [4, 16])
def test_the_rank_in_the_config_is_the_tensors(rank: int) -> None:
    with pytest.raises(AdapterError, match="has shape"):
        check_tensors(adapter_config(r=rank), records(adapter_tensors(8)), base_config())


@pytest.mark.parametrize("targets", ["all-linear", "q_proj", [], None, 5, ["q_proj", 3], [["q_proj"]], ["lm_head"], {}])
def test_targets_must_be_names_of_linear_modules(targets: Any) -> None:
    with pytest.raises(AdapterError, match=r"target module|target_modules"):
        check_tensors(adapter_config(target_modules=targets), records(adapter_tensors()), base_config())


@pytest.mark.parametrize(
    ("targets", "reason"), [(["q_proj"], "no module of"), (["q_proj", "v_proj", "o_proj"], "missing")]
)
def test_targets_in_the_config_are_the_tensors(targets: list[str], reason: str) -> None:
    with pytest.raises(AdapterError, match=reason):
        check_tensors(adapter_config(target_modules=targets), records(adapter_tensors()), base_config())


@pytest.mark.parametrize(("rank", "most"), [(1, 1), (2, 8), (8, 8), (9, 16), (33, 64), (512, 512)])
def test_the_engine_is_started_with_the_next_rank_that_it_knows(rank: int, most: int) -> None:
    assert engine_rank(rank) == most


def test_a_rank_beyond_every_engine_is_refused() -> None:
    with pytest.raises(AdapterError, match="513"):
        engine_rank(513)
