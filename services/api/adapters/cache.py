"""A private copy of every version that is served.

The engine reads an adapter's files again whenever it likes, and a file that is gone by then ends it for all users. The
shared volume may vanish or be cleaned at any time; this folder is ours alone, and named by content.
"""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from services.contract.adapter_files import open_regular
from services.contract.adapter_fit import LARGEST_WEIGHT, check_options, check_tensors
from services.contract.adapter_manifest import (
    CONFIG,
    CONTENT,
    MANIFEST,
    WEIGHTS,
    AdapterError,
    Manifest,
    TensorRecord,
    read_json,
    read_manifest,
    read_tensors,
    verify,
)


@dataclass(frozen=True, slots=True)
class Expected:
    """What an adapter must match to be served here."""

    base_config: dict[str, Any]
    base_config_sha256: str
    chat_format_sha256: str
    max_rank: int


class AdapterCache:
    """Folder of private copies: `<root>/<name>@<version>/`."""

    def __init__(self, root: Path, expected: Expected) -> None:
        self._root = root
        self._expected = expected

    def fetch(self, source: Path, name: str, version: str) -> tuple[Path, Manifest]:
        """A checked private copy of the version in `source`. Blocks on disk: call it in a thread.

        Everything is checked on the copy, so what was checked is what the engine will read. Raises `AdapterError`.
        """
        target = self._root / f"{name}@{version}"
        if not (target / MANIFEST).is_file():
            self._copy(source, target)
        try:
            return target, self._check(target, name, version)
        except (ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
            shutil.rmtree(target, ignore_errors=True)
            if isinstance(error, AdapterError):
                raise
            raise AdapterError(f"it cannot be read ({type(error).__name__}): written by a broken program?") from error

    def drop(self, name: str, version: str) -> None:
        """Removes a copy that no request uses any more."""
        shutil.rmtree(self._root / f"{name}@{version}", ignore_errors=True)

    def _copy(self, source: Path, target: Path) -> None:
        temporary = self._root / f".{uuid.uuid4().hex}"
        # No links: a version must not reach outside its folder, nor its name outside the volume.
        if source.is_symlink() or source.parent.is_symlink():
            raise AdapterError("its folder is a symbolic link: a version holds its own files")
        try:
            temporary.mkdir(parents=True)
            for name in (*CONTENT, MANIFEST):
                _copy_file(source / name, temporary / name)
            shutil.rmtree(target, ignore_errors=True)
            os.rename(temporary, target)
        except OSError as error:
            what = Path(error.filename or source).name
            raise AdapterError(f"cannot copy {what}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _check(self, folder: Path, name: str, version: str) -> Manifest:
        manifest = read_manifest(folder)
        if (manifest.name, manifest.version) != (name, version):
            raise AdapterError(f"the manifest is of {manifest.name}@{manifest.version}: it lies in the wrong folder")
        verify(folder, manifest)
        expected = self._expected
        if manifest.base.config_sha256 != expected.base_config_sha256:
            raise AdapterError(
                f"it was trained on another base model ({manifest.base.id}): train it on the one served here"
            )
        if manifest.base.chat_format_sha256 != expected.chat_format_sha256:
            raise AdapterError(
                "it was trained with another tokenizer or turn format: train it with the one served here"
            )
        try:
            orjson.dumps(manifest.metrics)
        except TypeError as error:
            raise AdapterError(f"{MANIFEST} holds metrics that clients cannot read: {error}") from error
        config = read_json(folder / CONFIG)
        check_options(config, expected.max_rank)
        tensors = read_tensors(folder / WEIGHTS)
        check_tensors(config, tensors, expected.base_config)
        check_weights(folder / WEIGHTS, tensors)
        return manifest


def clear_left_copies(folder: Path) -> None:
    """Removes what processes that are no more have left beside `folder`, whose name, like theirs, is a process id."""
    for left in folder.parent.iterdir() if folder.parent.is_dir() else ():
        if left.name.isdigit() and left != folder and not Path("/proc", left.name).exists():
            shutil.rmtree(left, ignore_errors=True)


def _copy_file(source: Path, target: Path) -> None:
    with os.fdopen(open_regular(source), "rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1024 * 1024)


def check_weights(path: Path, tensors: dict[str, TensorRecord]) -> None:
    """Raises `AdapterError` for weights that the engine would serve as garbage, and for an all-zero B.

    Not only NaN is harmful: what overflows in the middle leaves NaN in the engine's KV cache, whose blocks the base
    model's requests get next.
    """
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    changes = False
    for name, tensor in tensors.items():
        begin, end = (start + offset for offset in tensor.data_offsets)
        values = _as_float32(data[begin:end], tensor.dtype)
        if not np.isfinite(values).all():
            raise AdapterError(f"{name} holds NaN or infinite weights: training has diverged")
        if values.size and max(-values.min(), values.max()) > LARGEST_WEIGHT:
            raise AdapterError(f"{name} holds weights above {LARGEST_WEIGHT:g}, too large to compute with: diverged?")
        changes = changes or (".lora_B." in name and bool(np.any(values)))
    if not changes:
        raise AdapterError("every lora_B is zero: it changes nothing, was it trained?")


def _as_float32(data: bytes, dtype: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)
