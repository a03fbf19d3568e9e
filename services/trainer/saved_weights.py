"""Trained weights on the disk: an adapter as peft writes it, or a whole model. Needs torch.

A checkpoint holds them in the type they are trained in; `export` makes what is published of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from services.trainer.checkpoint import CheckpointError

ADAPTER_CONFIG, ADAPTER_WEIGHTS, MODEL_WEIGHTS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "model.safetensors",
)


@dataclass(frozen=True)
class TrainedWeights:
    """Tensors by name, and adapter_config.json's content where they are an adapter."""

    tensors: dict[str, torch.Tensor]
    adapter: dict[str, Any] | None

    def write(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """`dtype` none: as they are."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: tensor.detach().to(device="cpu", dtype=dtype or tensor.dtype).contiguous()
            for name, tensor in sorted(self.tensors.items())
        }
        name = MODEL_WEIGHTS if self.adapter is None else ADAPTER_WEIGHTS
        save_file(tensors, folder / name, metadata={"format": "pt"})
        if self.adapter is not None:
            text = json.dumps(self.adapter, indent=2, sort_keys=True)
            (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def trained_weights(model: Any, state_dict: dict[str, Any] | None = None) -> TrainedWeights:
    """What of `model` is trained; `state_dict` holds it where the model's own is in shards."""
    if isinstance(model, PeftModel):
        tensors = get_peft_model_state_dict(model, state_dict=state_dict, save_embedding_layers=False)
        return TrainedWeights(tensors, adapter_options(model))
    tensors = dict(model.state_dict() if state_dict is None else state_dict)
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return TrainedWeights(tensors, None)


def adapter_options(model: Any) -> dict[str, Any]:
    """adapter_config.json's content; sets sorted, so that equal adapters are equal files."""
    options = model.peft_config["default"].to_dict() | {"inference_mode": True}
    plain: dict[str, Any] = json.loads(json.dumps(options, default=_plain))
    return plain


def read_weights(model: Any, folder: Path) -> None:
    """Puts a checkpoint's weights into `model`. Raises `CheckpointError` when they are not exactly its own."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, read_tensors_of(model, folder, ADAPTER_WEIGHTS))
    else:
        model.load_state_dict(read_tensors_of(model, folder, MODEL_WEIGHTS), strict=False)


def read_tensors_of(model: Any, folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint's file. Raises `CheckpointError` when they are not exactly what is trained of `model`."""
    tensors: dict[str, torch.Tensor] = load_file(folder / name)
    if set(tensors) != set(trained_weights(model).tensors):
        raise CheckpointError(f"{folder / name} is not of this model and config: resume with the run's own")
    return tensors


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(getattr(value, "value", value))
