"""A fresh demo model, and the model directory that engines load. Needs torch and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from services.trainer.demo.recipe import Recipe

MAX_POSITIONS = 4096


def new_model(recipe: Recipe, control_ids: dict[str, int], vocabulary: int) -> Any:
    """An untrained `Qwen3ForCausalLM` in float32 on the CPU; its weights depend on the recipe alone."""
    torch.manual_seed(recipe.seed)
    return Qwen3ForCausalLM(config_of(recipe, control_ids, vocabulary))


def config_of(recipe: Recipe, control_ids: dict[str, int], vocabulary: int) -> Any:
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        attention_bias=False,
        attention_dropout=0.0,
        bos_token_id=control_ids["<|endoftext|>"],
        eos_token_id=control_ids["<|im_end|>"],
        pad_token_id=control_ids["<|endoftext|>"],
    )


def load_model(folder: Path) -> Any:
    """The model of a directory that `save_model` wrote, in bfloat16."""
    return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)


def save_model(model: Any, folder: Path) -> None:
    """Writes `config.json`, `generation_config.json` and `model.safetensors` in bfloat16; changes the model's dtype."""
    config = model.config
    model.to(torch.bfloat16).save_pretrained(folder)
    generation = {
        "bos_token_id": config.bos_token_id,
        "do_sample": True,
        "eos_token_id": [config.eos_token_id, config.pad_token_id],
        "pad_token_id": config.pad_token_id,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
    }
    text = json.dumps(generation, indent=2)
    (folder / "generation_config.json").write_text(text + "\n", encoding="utf-8")
    (folder / "model.safetensors").chmod(0o644)  # written for its owner alone
