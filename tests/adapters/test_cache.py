"""The private copy: complete, checked, its own, and gone when nobody needs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.api.adapters.cache import clear_left_copies
from services.contract.adapter_manifest import CONFIG, MANIFEST, WEIGHTS, AdapterError
from tests.adapters.conftest import Side
from tests.adapters.volumes import overwrite
from tests.trainer.adapters import adapter_config, safetensors_bytes


def fetch(side: Side, name: str, version: str) -> Path:
    folder, manifest = side.cache.fetch(side.volume.folder(name, version), name, version)
    assert (manifest.name, manifest.version) == (name, version)
    return folder


def test_a_copy_is_the_version_and_nothing_else(side: Side) -> None:
    version = side.volume.publish("cardio")
    source, copy = side.volume.folder("cardio", version), fetch(side, "cardio", version)
    (source / "notes.bin").write_bytes(b"x")
    assert copy.name == f"cardio@{version}"
    assert sorted(p.name for p in copy.iterdir()) == sorted((CONFIG, WEIGHTS, MANIFEST))
    assert all((copy / p.name).read_bytes() == p.read_bytes() for p in copy.iterdir())
    assert not any(p.is_symlink() or os.path.samefile(p, source / p.name) for p in copy.iterdir())


def test_a_copy_that_is_there_is_used_without_its_source(side: Side) -> None:
    version = side.volume.publish("cardio")
    fetch(side, "cardio", version)
    side.volume.vanish()
    fetch(side, "cardio", version)


def test_a_copy_that_was_changed_is_not_used(side: Side) -> None:
    version = side.volume.publish("cardio")
    copy = fetch(side, "cardio", version)
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[-1] ^= 1
    overwrite(copy / WEIGHTS, bytes(data))
    with pytest.raises(AdapterError, match="hash differs"):
        fetch(side, "cardio", version)
    fetch(side, "cardio", version)


def test_dropping_a_copy_removes_it_and_no_other(side: Side) -> None:
    one, other = side.volume.publish("cardio", 1), side.volume.publish("cardio", 2)
    fetch(side, "cardio", one)
    fetch(side, "cardio", other)
    side.cache.drop("cardio", one)
    side.cache.drop("cardio", one)
    assert side.copied() == {f"cardio@{other}"}


def link(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        elsewhere = folder.parent.parent.parent / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        os.rename(folder / name, elsewhere / name)
        (folder / name).symlink_to(elsewhere / name)

    return change


def link_folder(folder: Path) -> None:
    elsewhere = folder.parent.parent.parent / "elsewhere"
    os.rename(folder, elsewhere)
    folder.symlink_to(elsewhere)


def pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def half(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    overwrite(folder / WEIGHTS, data[: len(data) // 2])


def other_name(folder: Path) -> None:
    known = json.loads((folder / MANIFEST).read_text())
    overwrite(folder / MANIFEST, json.dumps(known | {"name": "somebody-else"}))


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights are a link": (link(WEIGHTS), WEIGHTS),
    "config is a link": (link(CONFIG), CONFIG),
    "manifest is a link": (link(MANIFEST), MANIFEST),
    "folder is a link": (link_folder, "symbolic link"),
    "weights are a pipe": (pipe, WEIGHTS),
    "weights are half": (half, "not copied whole"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS),
    "no config": (lambda f: (f / CONFIG).unlink(), CONFIG),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), MANIFEST),
    "half a manifest": (lambda f: overwrite(f / MANIFEST, (f / MANIFEST).read_bytes()[:99]), "broken"),
    "half a config": (lambda f: overwrite(f / CONFIG, '{"r": 8,'), "not copied whole"),
    "weights are a folder": (lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir())[1], WEIGHTS),
    "another's manifest": (other_name, "wrong folder"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_whole_or_not_its_own_is_refused_and_leaves_nothing(side: Side, change: str) -> None:
    wreck, reason = CHANGES[change]
    version = side.volume.place_raw("cardio", wreck)
    with pytest.raises(AdapterError, match=reason) as refused:
        fetch(side, "cardio", version)
    assert "\n" not in str(refused.value)
    assert str(side.volume.root) not in str(refused.value), "the server's paths are not the clients' business"
    assert side.copied() == set()


A, B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight" for part in "AB")


def bf16(values: np.ndarray) -> bytes:
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def as_bf16(tensors: dict[str, np.ndarray]) -> bytes:
    header, data = {}, b""
    for name, values in tensors.items():
        raw = bf16(values)
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


TYPES = {
    "float32": safetensors_bytes,
    "float16": lambda t: safetensors_bytes({k: v.astype(np.float16) for k, v in t.items()}),
    "bfloat16": as_bf16,
}


@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_that_trainers_write_is_served(side: Side, dtype: str) -> None:
    fetch(side, "cardio", side.volume.place("cardio", TYPES[dtype](side.volume.tensors())))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (A, float("nan"), "NaN"),
        (B, float("inf"), "NaN or infinite"),
        (B, float("-inf"), "NaN or infinite"),
        (B, 6e4, "too large"),
        (A, -6e4, "too large"),
    ],
)
def test_one_weight_that_would_overflow_is_enough(side: Side, dtype: str, key: str, value: float, reason: str) -> None:
    tensors = side.volume.tensors()
    tensors[key][3, 4] = value
    version = side.volume.place("cardio", TYPES[dtype](tensors))
    with pytest.raises(AdapterError, match=reason):
        fetch(side, "cardio", version)


def test_a_scale_that_would_overflow_is_refused(side: Side) -> None:
    version = side.volume.place("cardio", config=adapter_config(lora_alpha=1e30))
    with pytest.raises(AdapterError, match="lora_alpha"):
        fetch(side, "cardio", version)


def test_an_untrained_adapter_is_refused(side: Side) -> None:
    tensors = {k: v * 0 if ".lora_B." in k else v for k, v in side.volume.tensors().items()}
    version = side.volume.place("cardio", tensors)
    with pytest.raises(AdapterError, match="changes nothing"):
        fetch(side, "cardio", version)


def test_an_adapter_of_another_tokenizer_is_refused(side: Side) -> None:
    version = side.volume.place("cardio", chat_format_sha256="0" * 64)
    with pytest.raises(AdapterError, match="tokenizer"):
        fetch(side, "cardio", version)


def test_a_full_disk_is_said_and_leaves_nothing(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    version = side.volume.publish("cardio")

    def no_space(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", no_space)
    with pytest.raises(AdapterError, match="No space left"):
        fetch(side, "cardio", version)
    assert side.copied() == set()


def test_copies_of_processes_that_are_gone_are_cleared_and_no_others(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    gone, alive, own, foreign = (tmp_path / name for name in (str(child.pid), "1", str(os.getpid()), "notes"))
    for folder in (gone, alive, own, foreign):
        (folder / "cardio@0").mkdir(parents=True)
    clear_left_copies(own)
    assert not gone.exists()
    assert all(folder.exists() for folder in (alive, own, foreign))
    clear_left_copies(tmp_path / "never" / "made")
