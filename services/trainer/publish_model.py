"""A full fine-tune on the volume: `<volume>/models/<name>/<version>/`, a complete model directory that never changes again.

Nothing follows it by itself: a server is started with `MEDTHINK_MODEL` naming the folder. What training did not write
(tokenizer, generation config) comes from the base model, whose chat format is the run's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from services.contract.adapter_files import AdapterError, FileRecord, TensorRecord, file_record, read_json, read_tensors
from services.contract.adapter_manifest import MANIFEST, SCHEMA_VERSION, Details, check_name, config_sha256
from services.contract.staging import clear_staging, make_folder, staging_folder, sync_file, sync_folder, write_synced
from services.trainer.publish_checks import Base
from services.trainer.publish_weights import check_finite

MODELS = "models"
CONFIG, INDEX = "config.json", "model.safetensors.index.json"
_FROM_BASE = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "medthink.json",
)  # fmt: skip


def publish_model(
    volume: Path,
    name: str,
    folder: Path,
    base: Base,
    details: Details,
    *,
    check: Callable[[Path], dict[str, object] | None] = lambda staged: None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Path:
    """Copies, checks and makes visible the model in `folder`; returns where it is. Raises `AdapterError`.

    As with adapters, a failed or killed publication leaves nothing outside `.staging`, and equal content is not written twice.
    """
    check_name(name)
    try:
        on_step("clear")
        clear_staging(volume)
        with staging_folder(volume) as work:
            staged = work / "version"
            on_step("stage")
            make_folder(staged)
            for source in _sources(folder, base):
                _copy(source, staged / source.name)
            on_step("check")
            check_model(staged, base)
            found = check(staged)
            on_step("manifest")
            version = _write_manifest(staged, name, details, found or {})
            on_step("rename")
            return _make_visible(staged, volume / MODELS / name / version)
    except OSError as error:
        raise AdapterError(f"cannot publish to {volume}: {error.strerror or error}: look at the volume") from error


def check_model(folder: Path, base: Base) -> None:
    """Raises `AdapterError` unless every tensor of the base is there, in its shape and finite, and nothing else is."""
    if config_sha256(read_json(folder / CONFIG)) != base.record.config_sha256:
        raise AdapterError(
            f"{CONFIG} is not of {base.folder}'s shape: a full fine-tune keeps it, give the run's own base"
        )
    found: dict[str, TensorRecord] = {}
    for path in _weights(folder):
        tensors = read_tensors(path)
        check_finite(path, tensors)
        found |= tensors
    wanted: dict[str, TensorRecord] = {}
    for path in _weights(base.folder):
        wanted |= read_tensors(path.resolve())  # a download's cache keeps links to its files
    for tensors in (found, wanted):
        if base.config.get("tie_word_embeddings"):
            tensors.pop("lm_head.weight", None)  # some programs write the embedding a second time under this name
    strange = sorted(key for key in found.keys() | wanted.keys() if _shape(found, key) != _shape(wanted, key))
    if strange:
        raise AdapterError(f"{strange[0][:120]!r} is not as in the base model ({len(strange)} such): not saved whole?")


def _shape(tensors: dict[str, TensorRecord], key: str) -> tuple[int, ...] | None:
    return tensors[key].shape if key in tensors else None


def _weights(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise AdapterError(f"{folder} has no weights (*.safetensors): give the folder of a finished run")
    return paths


def _sources(folder: Path, base: Base) -> Iterator[Path]:
    """Files of the model directory to be: the run's own, and the base's where the run has none."""
    yield folder / CONFIG
    yield from _weights(folder)
    if (folder / INDEX).is_file():
        yield folder / INDEX
    for name in _FROM_BASE:
        places = [place / name for place in (folder, base.folder) if (place / name).is_file()]
        yield from places[:1]


def _copy(source: Path, target: Path) -> None:
    from tqdm import tqdm

    with source.open("rb") as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        with tqdm.wrapattr(writer, "write", total=size, desc=source.name, leave=False, disable=None) as shown:
            shutil.copyfileobj(reader, shown, 1024 * 1024)
        writer.flush()
        sync_file(writer.fileno())


def _write_manifest(staged: Path, name: str, details: Details, found: dict[str, object]) -> str:
    files: dict[str, FileRecord] = {path.name: file_record(path) for path in sorted(staged.iterdir())}
    lines = "".join(f"{file} {record.sha256}\n" for file, record in files.items())
    version = hashlib.sha256(lines.encode()).hexdigest()[:16]
    known = details.model_dump()
    known["metrics"] |= found
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "version": version,
        "created": time.time(),
        "files": {file: record.model_dump() for file, record in files.items()},
        **known,
    }
    write_synced(staged / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    sync_folder(staged)
    return version


def _make_visible(staged: Path, target: Path) -> Path:
    if (target / MANIFEST).is_file():
        return target
    made: list[Path] = []
    try:
        for parent in (target.parent.parent, target.parent):
            if not parent.is_dir():
                make_folder(parent)
                made.append(parent)
        os.rename(staged, target)
    except BaseException:
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    for parent in (target.parent, target.parent.parent, target.parent.parent.parent):
        sync_folder(parent)
    return target
