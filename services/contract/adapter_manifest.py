"""Publishing an adapter to a shared volume, and reading it there. The trainer writes, every API replica reads.

    <volume>/<name>/<version>/   adapter_config.json, adapter_model.safetensors, manifest.json; never changed again
    <volume>/<name>/CURRENT      one line, the version that requests for <name> get
    <volume>/.staging/<uuid>/    where a version is written before one rename makes it visible (contract.staging)

A version is its content's hash. Whatever instant a publisher is killed at, readers see either the old state or the new:
the folder appears by one rename, complete and synced, and `CURRENT` changes by one replace.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.contract.adapter_evaluation import EvaluationRecord
from services.contract.adapter_files import BLOCK, FileRecord, file_record, open_regular
from services.contract.adapter_files import AdapterError as AdapterError
from services.contract.adapter_files import TensorRecord as TensorRecord
from services.contract.adapter_files import read_json as read_json
from services.contract.adapter_files import read_tensors as read_tensors
from services.contract.staging import (
    clear_staging,
    make_folder,
    staging_folder,
    sync_file,
    sync_folder,
    write_synced,
)

SCHEMA_VERSION = 1
CONFIG, WEIGHTS, MANIFEST, CURRENT = "adapter_config.json", "adapter_model.safetensors", "manifest.json", "CURRENT"
CONTENT = (CONFIG, WEIGHTS)
NAME_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VERSION_FORM = re.compile(r"[0-9a-f]{16}")


class BaseRecord(BaseModel):
    """The base model that an adapter was trained on, by what decides whether it fits."""

    model_config = ConfigDict(frozen=True)
    id: str
    config_sha256: str
    chat_format_sha256: str


_LARGEST_ALPHA = 1e300  # an int may be too large to become a float; NaN compares false


class Manifest(BaseModel):
    """What is known of one version. Written last into the staged folder, so its presence means that the rest is complete."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    schema_version: int = SCHEMA_VERSION
    name: str
    version: str
    created: float = Field(description="seconds since 1970, the publisher's clock")
    files: dict[str, FileRecord]
    rank: int = Field(ge=1)
    alpha: float = Field(allow_inf_nan=False)
    targets: tuple[str, ...]
    base: BaseRecord
    data_sha256: str | None = None
    system_prompt: str | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    trainer_version: str = ""
    evaluation: EvaluationRecord | None = None


class Details(BaseModel):
    """What a publisher knows beyond the files."""

    model_config = ConfigDict(frozen=True)
    base: BaseRecord
    data_sha256: str | None = None
    system_prompt: str | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    trainer_version: str = ""
    evaluation: EvaluationRecord | None = None


# Names


def check_name(name: str) -> str:
    """The name itself; raises `AdapterError` for what must not become a path or a model name."""
    if not NAME_FORM.fullmatch(name) or ".." in name:
        raise AdapterError(f"{name[:80]!r} is no adapter name: letters, digits, '.', '_' and '-', at most 64")
    return name


def content_version(files: Mapping[str, FileRecord]) -> str:
    """16 hex digits of the SHA-256 over the content files' own hashes, in fixed order."""
    lines = "".join(f"{name} {files[name].sha256}\n" for name in CONTENT)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def config_sha256(config: Mapping[str, Any]) -> str:
    """Hash of what in a model's config.json decides whether an adapter's shapes fit; paths and versions do not count."""
    keys = (
        "architectures", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings",
    )  # fmt: skip
    chosen = {key: config.get(key) for key in keys}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


# Publishing


def publish(
    volume: Path,
    name: str,
    folder: Path,
    details: Details,
    *,
    check: Callable[[Path], Mapping[str, Any] | None] = lambda staged: None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Manifest:
    """Makes the adapter in `folder` the current version of `name`; returns its manifest.

    `check` looks at the staged copy and may refuse it by raising; what it returns joins the manifest's metrics. `on_step`
    is told each step before it is taken. A version that is there already, unharmed, is not written again. Raises
    `AdapterError`; a failed publication leaves no trace but, when the process is killed, a folder under `.staging` that
    the next one clears.
    """
    check_name(name)
    try:
        on_step("clear")
        clear_staging(volume)
        with staging_folder(volume) as work:
            staged = work / "version"
            on_step("stage")
            make_folder(staged)
            _copy_content(folder, staged)
            on_step("check")
            found = check(staged)
            on_step("manifest")
            manifest = _write_manifest(staged, name, details, found or {})
            write_synced(work / CURRENT, f"{manifest.version}\n".encode())
            _note_evaluation(work, volume / name / manifest.version, details.evaluation)
            _make_current(work, volume / name, manifest.version, on_step)
        on_step("done")
        return read_manifest(volume / name / manifest.version)
    except OSError as error:
        raise AdapterError(f"cannot publish to {volume}: {_explain(error)}") from error


def set_current(volume: Path, name: str, version: str) -> None:
    """Points `CURRENT` to a version that is there; raises `AdapterError` when it is not."""
    folder = volume / check_name(name)
    if not VERSION_FORM.fullmatch(version) or not (folder / version / MANIFEST).is_file():
        raise AdapterError(f"{name} has no version {version[:40]!r}")
    try:
        with staging_folder(volume) as work:
            write_synced(work / CURRENT, f"{version}\n".encode())
            os.replace(work / CURRENT, folder / CURRENT)
        sync_folder(folder)
    except OSError as error:
        raise AdapterError(f"cannot write {folder / CURRENT}: {_explain(error)}") from error


def rollback(volume: Path, name: str, version: str | None = None) -> str:
    """Moves `CURRENT` to `version`, or to the version published before the current one; returns it.

    Raises `AdapterError`, also for a version whose files are no longer those that were published.
    """
    if version is None:
        current = read_current(volume, name)
        known = versions(volume, name)
        earlier = known[: known.index(current)] if current in known else []
        if current is None:
            raise AdapterError(f"{name} was never published here")
        if not earlier:
            raise AdapterError(f"{name} has no version before {current}: name one with --version")
        version = earlier[-1]
    folder = volume / check_name(name) / version
    if VERSION_FORM.fullmatch(version) and folder.is_dir():
        verify(folder, read_manifest(folder))
    set_current(volume, name, version)
    return version


def _copy_content(folder: Path, staged: Path) -> None:
    for name in CONTENT:
        if not (folder / name).is_file():
            raise AdapterError(f"{folder} has no {name}: give the folder that training wrote")
        try:
            source = (folder / name).open("rb")
        except OSError as error:
            raise AdapterError(f"cannot read {folder / name}: {error.strerror or error}") from error
        with source, (staged / name).open("wb") as copy:
            shutil.copyfileobj(source, copy, BLOCK)
            copy.flush()
            sync_file(copy.fileno())


def _write_manifest(staged: Path, name: str, details: Details, found: Mapping[str, Any]) -> Manifest:
    files = {content: file_record(staged / content) for content in CONTENT}
    rank, alpha, targets = _adapter_facts(read_json(staged / CONFIG))
    known = details.model_dump()
    known["metrics"] |= found
    try:
        manifest = Manifest(
            name=name,
            version=content_version(files),
            created=time.time(),
            files=files,
            rank=rank,
            alpha=alpha,
            targets=targets,
            **known,
        )
        text = manifest.model_dump_json(indent=1)
    except ValueError as error:
        raise AdapterError(f"no {MANIFEST} can be written of it: {str(error).splitlines()[0]}") from error
    write_synced(staged / MANIFEST, text.encode())
    sync_folder(staged)
    return manifest


def _adapter_facts(config: Mapping[str, Any]) -> tuple[int, float, tuple[str, ...]]:
    """Rank, alpha and target modules of an adapter_config.json."""
    rank, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if not isinstance(rank, int) or rank < 1:
        raise AdapterError(f"{CONFIG} has no rank: r must be a whole number above 0")
    if not isinstance(alpha, int | float) or not -_LARGEST_ALPHA < alpha < _LARGEST_ALPHA:
        raise AdapterError(f"{CONFIG} has no scale: lora_alpha must be a number")
    if not isinstance(targets, list) or not targets or not all(isinstance(target, str) for target in targets):
        raise AdapterError(f"{CONFIG} names no modules: target_modules must be a list of names")
    return rank, float(alpha), tuple(sorted(targets))


def _make_current(work: Path, folder: Path, version: str, on_step: Callable[[str], None]) -> None:
    """Two renames: the version becomes visible, then current. Takes the first back when the second fails."""
    staged, aside, target = work / "version", work / "aside", folder / version
    is_new_name = not folder.is_dir()
    on_step("rename")
    try:
        if is_new_name:
            with contextlib.suppress(FileExistsError):  # made by another publisher this moment
                make_folder(folder)
            sync_folder(folder.parent)
        if not _is_whole(target):
            _put(staged, aside, target)
        sync_folder(folder)
        on_step("current")
        os.replace(work / CURRENT, folder / CURRENT)
    except BaseException:
        if not staged.exists() and not _is_current(folder, version):
            os.rename(target, staged)
        if aside.exists():
            os.rename(aside, target)
        if is_new_name:
            with contextlib.suppress(OSError):  # another publisher's versions are in it
                folder.rmdir()
        raise
    sync_folder(folder)


def _note_evaluation(work: Path, target: Path, evaluation: EvaluationRecord | None) -> None:
    """A version that is there already keeps its files; that it was evaluated since joins its manifest."""
    if evaluation is None or not _is_whole(target):
        return
    known = read_manifest(target)
    if known.evaluation != evaluation:
        amended = known.model_copy(update={"evaluation": evaluation})
        write_synced(work / MANIFEST, amended.model_dump_json(indent=1).encode())
        os.replace(work / MANIFEST, target / MANIFEST)


def _put(staged: Path, aside: Path, target: Path) -> None:
    if os.path.lexists(target):  # damaged since it was published
        os.rename(target, aside)
    try:
        os.rename(staged, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not _is_whole(target):
            raise  # else: another publisher of the same content was faster


def _is_whole(folder: Path) -> bool:
    try:
        verify(folder, read_manifest(folder))
    except AdapterError:
        return False
    return True


def _is_current(folder: Path, version: str) -> bool:
    try:
        return read_current(folder.parent, folder.name) == version
    except AdapterError:
        return False


def _explain(error: OSError) -> str:
    next_step = {
        errno.EACCES: "let this user write there",
        errno.EPERM: "let this user write there",
        errno.EROFS: "mount it writable",
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space, or raise the quota",
        errno.EFBIG: "raise the limit on file sizes",
    }.get(error.errno or 0, "look at the volume and publish again")
    return f"{error.strerror or error}: {next_step}"


# Reading


def adapter_names(volume: Path) -> list[str]:
    """Names on the volume that have, or had, a current version. Raises OSError when the volume does not answer."""
    return sorted(p.name for p in volume.iterdir() if NAME_FORM.fullmatch(p.name) and (p / CURRENT).is_file())


def read_current(volume: Path, name: str) -> str | None:
    """The current version of a name; `None` without a `CURRENT`. Raises `AdapterError` for a damaged one."""
    try:
        with os.fdopen(open_regular(volume / check_name(name) / CURRENT), "rb") as file:
            text = file.read(64).decode("ascii").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AdapterError(f"cannot read {name}/{CURRENT}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise AdapterError(f"{name}/{CURRENT} names no version: it is not text") from error
    if not VERSION_FORM.fullmatch(text):
        raise AdapterError(f"{name}/{CURRENT} names no version: {text[:40]!r}")
    return text


def versions(volume: Path, name: str) -> list[str]:
    """Complete versions of a name, oldest first by their manifests. Raises `AdapterError` when they cannot be listed."""
    folder = volume / check_name(name)
    try:
        paths = list(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise AdapterError(f"cannot list {folder}: {error.strerror or error}") from error
    found = []
    for path in paths:
        if VERSION_FORM.fullmatch(path.name):
            with contextlib.suppress(AdapterError):
                found.append((read_manifest(path).created, path.name))
    return [version for _, version in sorted(found)]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a version's folder. Raises `AdapterError`."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise AdapterError(f"cannot read {MANIFEST}: {error.strerror or error}") from error
    except ValidationError as error:
        raise AdapterError(f"{MANIFEST} is broken: {error.errors()[0]['msg']}") from error
    if manifest.schema_version > SCHEMA_VERSION:
        raise AdapterError(
            f"{MANIFEST} is of schema {manifest.schema_version}, this program knows {SCHEMA_VERSION}: update it"
        )
    return manifest


def verify(folder: Path, manifest: Manifest) -> None:
    """Raises `AdapterError` unless the files are those that the manifest names, byte for byte, and it tells the truth of them.

    Nothing may be a symbolic link: a version is complete in its folder.
    """
    _refuse_links(folder)
    if set(manifest.files) != set(CONTENT):
        raise AdapterError(f"{MANIFEST} must name exactly {' and '.join(CONTENT)}")
    for name, expected in manifest.files.items():
        found = file_record(folder / name)
        if found.size != expected.size:
            raise AdapterError(f"{name} has {found.size} bytes, its manifest says {expected.size}: not copied whole?")
        if found.sha256 != expected.sha256:
            raise AdapterError(f"{name} is not the file that was published: its hash differs")
    if content_version(manifest.files) != manifest.version:
        raise AdapterError("the version is not the hash of its content")
    if _adapter_facts(read_json(folder / CONFIG)) != (manifest.rank, manifest.alpha, manifest.targets):
        raise AdapterError(f"{MANIFEST} and {CONFIG} do not agree on rank, alpha and target modules")


def _refuse_links(folder: Path) -> None:
    try:
        links = [path.name for path in (folder, *folder.iterdir()) if path.is_symlink()]
    except OSError as error:
        raise AdapterError(f"cannot list {folder}: {error.strerror or error}") from error
    if links:
        raise AdapterError(f"{links[0][:80]!r} is a symbolic link: a version holds its own files")
