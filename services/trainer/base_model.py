"""The base model's directory: whether it is whole and of the right kind, and what it is called. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from services.contract.adapter_files import AdapterError, read_json, read_tensors


class ModelError(ValueError):
    """A base model that is missing, broken or of another kind; the message names the cause and the next step."""


def check_base(folder: Path) -> dict[str, Any]:
    """The base's config.json. Raises `ModelError` unless the directory holds a whole Qwen3 model in safetensors."""
    if not folder.is_dir():
        raise ModelError(f"there is no base model at {folder}: download Qwen3-1.7B there, or set base to its directory")
    weights = sorted(folder.glob("*.safetensors"))
    try:
        config = read_json((folder / "config.json").resolve())  # a file of the hub's cache is a link
        for path in weights:
            read_tensors(path.resolve())
    except AdapterError as error:
        raise ModelError(f"the base model at {folder} cannot be used: {error}. Download it again") from error
    if not weights:
        raise ModelError(f"{folder} has no *.safetensors: models load from safetensors only, convert it first")
    if config.get("model_type") != "qwen3":
        raise ModelError(f"{folder} is a model of type {config.get('model_type')!r}: only qwen3 is trained here")
    if config.get("use_sliding_window"):
        raise ModelError(f"{folder} uses sliding windows, which the training attention does not: set base to another")
    return config


def base_id(folder: Path) -> str:
    """The model's canonical name, which an adapter is stamped with: never a path of this machine.

    From the hub's cache folder (`models--Qwen--Qwen3-1.7B/snapshots/…`), else the directory's name, with the publisher of
    Qwen's own models before it.
    """
    for part in reversed(folder.absolute().parts):
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/", 1)
    name = folder.resolve().name
    return f"Qwen/{name}" if name.startswith("Qwen3-") else name
