"""A Qwen3 with random weights on the disk: what a recipe's speed and memory depend on, without a download. Needs torch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

TRUE_SHAPE: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40_960,
}
TINY_SHAPE = TRUE_SHAPE | {
    "vocab_size": 6144,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
_TOKENIZER = (
    Path(__file__).resolve().parents[2] / "deploy" / "demo"
)  # TRL asks for one; its ids are in every shape's range


def make_model(folder: Path, shape: dict[str, Any]) -> None:
    """Writes a bf16 model in safetensors, made on the GPU where there is one."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = Qwen3ForCausalLM(Qwen3Config(**shape))
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(_TOKENIZER / name, folder / name)
