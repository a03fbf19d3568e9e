"""A checkpoint to what is published: an adapter folder, or a model directory that `MEDTHINK_MODEL` can name. Needs torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from services.contract.adapter_files import read_json, read_tensors
from services.contract.adapter_fit import check_options, check_tensors
from services.trainer.run_record import ADAPTER, MODEL
from services.trainer.saved_weights import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MODEL_WEIGHTS, TrainedWeights

_MOST_RANK = 512  # of vLLM's max_lora_rank; what a server loads is its own setting, and `publish` asks for it
# Beside config.json and the weights, of a base; the tokenizer's files, and the notice that a demo model is one.
_COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "medthink.json",
)  # fmt: skip


def export_adapter(checkpoint: Path, out: Path, base_id: str, base_config: Mapping[str, Any]) -> Path:
    """Writes `out`/adapter in bf16. Raises `AdapterError` when the engine could not serve it."""
    options = read_json(checkpoint / ADAPTER_CONFIG) | {"base_model_name_or_path": base_id}
    tensors = load_file(checkpoint / ADAPTER_WEIGHTS)

    def write(folder: Path) -> None:
        TrainedWeights(tensors, options).write(folder, torch.bfloat16)
        check_options(read_json(folder / ADAPTER_CONFIG), _MOST_RANK)
        check_tensors(options, read_tensors(folder / ADAPTER_WEIGHTS), base_config)

    return _replace_folder(out / ADAPTER, write)


def export_model(checkpoint: Path, out: Path, base: Path, base_config: Mapping[str, Any]) -> Path:
    """Writes `out`/model in bf16, complete with the base's configuration and tokenizer."""
    tensors = load_file(checkpoint / MODEL_WEIGHTS)

    def write(folder: Path) -> None:
        TrainedWeights(tensors, None).write(folder, torch.bfloat16)
        config = {name: value for name, value in base_config.items() if name not in ("torch_dtype", "_name_or_path")}
        text = json.dumps(config | {"dtype": "bfloat16"}, indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        for name in _COMPANIONS:
            if (base / name).is_file():
                shutil.copyfile(base / name, folder / name)

    return _replace_folder(out / MODEL, write)


def _replace_folder(target: Path, write: Callable[[Path], None]) -> Path:
    """Makes the folder under another name first: it is there whole or not at all."""
    staged = target.with_name(f".{target.name}")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        staged.mkdir()
        write(staged)
        shutil.rmtree(target, ignore_errors=True)
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target
