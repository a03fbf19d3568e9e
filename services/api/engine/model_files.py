"""Which model to serve: finds or fetches its directory and reads what the API must know of it. No torch, no vllm."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QWEN = "Qwen/Qwen3-1.7B"
NEEDED = ("config.json", "tokenizer.json")
PATTERNS = ["*.safetensors", "*.json", "*.txt"]


class ModelError(RuntimeError):
    """The model cannot be served; one line with the cause and the next step."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A checked model directory. `demo` is the notice of a model that is not medicine, or None."""

    folder: Path
    max_positions: int
    config: dict[str, Any] = field(default_factory=dict)
    sampling_defaults: dict[str, Any] = field(default_factory=dict)
    demo: str | None = None


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers here."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        return subprocess.run([tool, "-L"], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_model(name: str, source: str) -> Path:
    """The directory of a path or hub id; a hub id is downloaded (safetensors only) unless it is in the local cache.

    Raises `ModelError`.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(f"MEDTHINK_MODEL={name} is no directory: give a model directory, or a hub id such as {QWEN}")
    try:
        if source == "modelscope":
            from modelscope import snapshot_download as from_modelscope

            return Path(from_modelscope(name, allow_patterns=PATTERNS))
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=PATTERNS))
    except ImportError as error:
        raise ModelError(
            f"MEDTHINK_MODEL_SOURCE={source} needs the package modelscope: pip install modelscope"
        ) from error
    except Exception as error:
        cause = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot download {name} from {source} ({cause}): check the network, set MEDTHINK_MODEL_SOURCE=modelscope, "
            "or download it elsewhere and set MEDTHINK_MODEL to its directory"
        ) from error


def read_model(folder: Path) -> ModelFiles:
    """Checks a directory and reads its limits and sampling defaults. Raises `ModelError`."""
    for name in NEEDED:
        if not (folder / name).is_file():
            raise ModelError(f"{folder} has no {name}: it is not a complete Hugging Face model directory")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no *.safetensors: models load from safetensors only, convert it first")
    config = _read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    defaults = _read_json(generation) if generation.is_file() else {}
    notice = _read_json(folder / "medthink.json").get("demo") if (folder / "medthink.json").is_file() else None
    known = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return ModelFiles(
        folder=folder,
        config=config,
        max_positions=int(config.get("max_position_embeddings", 0)) or 4096,
        sampling_defaults={k: defaults[k] for k in known if defaults.get(k) is not None},
        demo=str(notice) if notice else None,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"cannot read {path}: not a JSON object")
    return value
