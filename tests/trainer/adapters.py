"""Adapters for tests, written byte by byte: right ones and every kind of wrong one. Needs no torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from services.contract.adapter_fit import module_sizes
from services.contract.adapter_manifest import CONFIG, WEIGHTS, config_sha256
from services.contract.chat_format import ChatFormat

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = ROOT / "deploy" / "demo"
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Tensors = dict[str, np.ndarray[Any, Any]]


def base_config() -> dict[str, Any]:
    config: dict[str, Any] = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    return config


def adapter_config(**options: Any) -> dict[str, Any]:
    """adapter_config.json as peft writes it, as far as anybody reads it."""
    plain = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "bias": "none"}
    return plain | {"target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "demo"} | options


def adapter_tensors(
    rank: int = 8, targets: tuple[str, ...] = ("q_proj", "v_proj"), seed: int = 0, size: float = 0.01, **sizes: int
) -> Tensors:
    """A and B of every layer, float32; `sizes` override the base's config, for adapters of another model."""
    config = base_config() | sizes
    rng = np.random.default_rng(seed)
    tensors: Tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for target in targets:
            parent, inputs, outputs = module_sizes(config)[target]
            stem = f"base_model.model.model.layers.{layer}.{parent}.{target}"
            for part, shape in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))):
                tensors[f"{stem}.{part}.weight"] = (size * rng.standard_normal(shape)).astype(np.float32)
    return tensors


def safetensors_bytes(tensors: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        dtype = {"float32": "F32", "float16": "F16", "float64": "F64"}[values.dtype.name]
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + values.nbytes],
        }
        data += values.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_adapter(folder: Path, tensors: Tensors | None = None, config: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(adapter_config() if config is None else config), encoding="utf-8")
    (folder / WEIGHTS).write_bytes(safetensors_bytes(adapter_tensors() if tensors is None else tensors))
    return folder


def write_run(out: Path, seed: int = 0, **record: Any) -> Path:
    """A run's folder as `train` leaves it, with an adapter for the demo model; `record` overrides run.json."""
    write_adapter(out / "adapter", adapter_tensors(seed=seed))
    known = {
        "base_config_sha256": config_sha256(base_config()),
        "chat_format_sha256": ChatFormat.load(DEMO, Tokenizer.from_str).digest,
        "data_sha256": "d" * 64,
        "system_prompt": "你是助手。",
        "metrics": {"val_loss": 1.5},
        "trainer_version": "test",
    }
    (out / "run.json").write_text(json.dumps(known | record), encoding="utf-8")
    return out


def visible_tree(volume: Path) -> dict[str, bytes | str | None]:
    """Everything that readers of a volume can see: path to content, `None` for a folder, a link's target."""
    tree: dict[str, bytes | str | None] = {}
    for path in sorted(volume.rglob("*")):
        inside = path.relative_to(volume)
        if inside.parts[0] != ".staging":
            tree[str(inside)] = (
                str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            )
    return tree


def with_change(change: Callable[[Tensors], None], **options: Any) -> Tensors:
    tensors = adapter_tensors(**options)
    change(tensors)
    return tensors
