"""The volume's protocol: what is published can be read and trusted, and whatever else lies there ends in one clear line."""

from __future__ import annotations

import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.contract import adapter_manifest
from services.contract.adapter_files import TensorRecord, read_json, read_tensors
from services.contract.adapter_manifest import (
    CONFIG,
    CONTENT,
    CURRENT,
    MANIFEST,
    WEIGHTS,
    AdapterError,
    BaseRecord,
    Details,
    Manifest,
    adapter_names,
    check_name,
    publish,
    read_current,
    read_manifest,
    rollback,
    set_current,
    verify,
    versions,
)
from tests.trainer.adapters import adapter_config, safetensors_bytes, visible_tree, write_adapter

BASE = BaseRecord(id="demo", config_sha256="a" * 64, chat_format_sha256="b" * 64)
DETAILS = Details(base=BASE, system_prompt="你是助手。", metrics={"val_loss": 1.5})
TINY = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((8, 4), np.float32)}
reused = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


def check_message(error: AdapterError) -> None:
    """It goes on one line of a log or a terminal."""
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 400


def adapter(folder: Path, content: float = 1.0) -> Path:
    return write_adapter(folder, {name: values * np.float32(content) for name, values in TINY.items()})


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume"


@pytest.fixture
def version_folder(volume: Path, tmp_path: Path) -> Path:
    manifest = publish(volume, "kids", adapter(tmp_path / "run"), DETAILS)
    return volume / "kids" / manifest.version


# Names


@pytest.mark.parametrize("name", ["a", "kids", "Kids-2.1_b", "7", "x" * 64])
def test_usual_names_are_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-x", "a..b", "a/b", "../a", "a\n", "a b", "a@1", "儿童", "x" * 65, "a\x00"]
)
def test_what_must_not_become_a_path_is_no_name(name: str, volume: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "run")
    for use in (
        lambda: check_name(name),
        lambda: publish(volume, name, folder, DETAILS),
        lambda: read_current(volume, name),
        lambda: versions(volume, name),
        lambda: rollback(volume, name),
    ):
        with pytest.raises(AdapterError, match="is no adapter name") as refused:
            use()
        assert "\n" not in str(refused.value)
    assert visible_tree(volume) == {}


@given(st.text(max_size=80))
def test_a_name_that_is_taken_stays_in_its_folder(name: str) -> None:
    try:
        check_name(name)
    except AdapterError:
        return
    path = Path("/volume") / name
    assert path.parent == Path("/volume")
    assert os.path.normpath(path) == str(path)
    assert not name.startswith(".")


# Publishing


def test_a_published_adapter_lies_as_the_design_says(volume: Path, tmp_path: Path) -> None:
    run = adapter(tmp_path / "run")
    steps: list[str] = []
    manifest = publish(volume, "kids", run, DETAILS, on_step=steps.append)
    assert steps == ["clear", "stage", "check", "manifest", "rename", "current", "done"]
    tree = visible_tree(volume)
    inside = f"kids/{manifest.version}"
    assert set(tree) == {"kids", inside, f"kids/{CURRENT}", *(f"{inside}/{file}" for file in (*CONTENT, MANIFEST))}
    assert tree[f"kids/{CURRENT}"] == f"{manifest.version}\n".encode()
    assert tree[f"{inside}/{WEIGHTS}"] == (run / WEIGHTS).read_bytes()
    assert (manifest.rank, manifest.alpha, manifest.targets) == (8, 16.0, ("q_proj", "v_proj"))
    assert (manifest.base, manifest.system_prompt, manifest.metrics) == (BASE, "你是助手。", {"val_loss": 1.5})
    assert read_manifest(volume / inside) == manifest
    assert (adapter_names(volume), read_current(volume, "kids")) == (["kids"], manifest.version)
    verify(volume / inside, manifest)
    assert list((volume / ".staging").iterdir()) == []


def test_a_version_is_its_content(volume: Path, tmp_path: Path) -> None:
    first = publish(volume, "kids", adapter(tmp_path / "one"), DETAILS)
    other_name = publish(volume, "elders", adapter(tmp_path / "two"), DETAILS.model_copy(update={"metrics": {}}))
    other_content = publish(volume, "kids", adapter(tmp_path / "three", content=2), DETAILS)
    (tmp_path / "two" / CONFIG).write_text(json.dumps(adapter_config(lora_alpha=32)), encoding="utf-8")
    other_config = publish(volume, "kids", tmp_path / "two", DETAILS)
    assert first.version == other_name.version
    assert len({first.version, other_content.version, other_config.version}) == 3


def test_publishing_the_same_content_again_changes_only_what_is_current(volume: Path, tmp_path: Path) -> None:
    first = publish(volume, "kids", adapter(tmp_path / "one"), DETAILS)
    second = publish(volume, "kids", adapter(tmp_path / "two", content=2), DETAILS)
    before = visible_tree(volume)
    again = publish(volume, "kids", tmp_path / "one", DETAILS.model_copy(update={"system_prompt": "other"}))
    assert again == first
    assert read_current(volume, "kids") == first.version
    set_current(volume, "kids", second.version)
    assert visible_tree(volume) == before


def test_publishing_again_mends_a_version_that_was_damaged(version_folder: Path, volume: Path, tmp_path: Path) -> None:
    (version_folder / WEIGHTS).chmod(0o644)
    (version_folder / WEIGHTS).write_bytes(b"rotten")
    again = publish(volume, "kids", tmp_path / "run", DETAILS)
    verify(volume / "kids" / again.version, again)
    assert versions(volume, "kids") == [again.version]
    assert list((volume / ".staging").iterdir()) == []


def test_what_the_check_finds_joins_the_metrics(volume: Path, tmp_path: Path) -> None:
    manifest = publish(volume, "kids", adapter(tmp_path / "run"), DETAILS, check=lambda staged: {"canary": 4})
    assert manifest.metrics == {"val_loss": 1.5, "canary": 4}


def test_the_check_sees_the_copy_that_will_be_served(volume: Path, tmp_path: Path) -> None:
    run = adapter(tmp_path / "run")
    seen: list[bytes] = []

    def check(staged: Path) -> None:
        (run / WEIGHTS).write_bytes(b"changed meanwhile")
        seen.append((staged / WEIGHTS).read_bytes())

    manifest = publish(volume, "kids", run, DETAILS, check=check)
    assert (volume / "kids" / manifest.version / WEIGHTS).read_bytes() == seen[0]


@pytest.mark.parametrize("at", ["clear", "stage", "check", "manifest", "rename", "current"])
@pytest.mark.parametrize("new_name", [False, True])
def test_an_error_at_any_step_leaves_the_volume_as_it_was(
    at: str, new_name: bool, volume: Path, tmp_path: Path
) -> None:
    publish(volume, "elders" if new_name else "kids", adapter(tmp_path / "old"), DETAILS)
    before = visible_tree(volume)

    def fail(step: str) -> None:
        if step == at:
            raise OSError(28, "No space left on device")

    with pytest.raises(AdapterError, match="No space left on device: free some space"):
        publish(volume, "kids", adapter(tmp_path / "new", content=2), DETAILS, on_step=fail)
    assert visible_tree(volume) == before
    assert list((volume / ".staging").iterdir()) == []


def test_a_refusal_leaves_the_volume_as_it_was(version_folder: Path, volume: Path, tmp_path: Path) -> None:
    def refuse(staged: Path) -> None:
        raise AdapterError("no good")

    before = visible_tree(volume)
    with pytest.raises(AdapterError, match="no good"):
        publish(volume, "kids", adapter(tmp_path / "new", content=2), DETAILS, check=refuse)
    assert visible_tree(volume) == before
    assert list((volume / ".staging").iterdir()) == []


def test_everything_is_on_the_disk_before_it_is_visible(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may lose what was not synced, so content and folder come before the rename, and that before CURRENT."""
    events: list[str] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def note_sync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(f"sync {'version' if path.name == version else path.name}")
        fsync(descriptor)

    def note_rename(source: Any, target: Any) -> None:
        events.append("rename" if Path(target).name == version else f"rename to {Path(target).name}")
        rename(source, target)

    def note_replace(source: Any, target: Any) -> None:
        events.append(f"replace {Path(target).name}")
        replace(source, target)

    run = adapter(tmp_path / "run")
    version = publish(tmp_path / "elsewhere", "kids", run, DETAILS).version
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    monkeypatch.setattr(os, "replace", note_replace)
    publish(volume, "kids", run, DETAILS)
    shown, pointed = events.index("rename"), events.index(f"replace {CURRENT}")
    assert {f"sync {file}" for file in (*CONTENT, MANIFEST, CURRENT)} | {"sync version"} <= set(events[:shown])
    assert "sync kids" in events[shown:pointed]
    assert events[-1] == "sync kids"


def test_a_server_of_another_user_can_read_what_a_careful_umask_wrote(volume: Path, tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        manifest = publish(volume, "kids", adapter(tmp_path / "run"), DETAILS)
    finally:
        os.umask(old)
    folder = volume / "kids" / manifest.version
    files = [folder / file for file in (*CONTENT, MANIFEST)] + [volume / "kids" / CURRENT]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o444}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)} == {0o755}


@pytest.mark.parametrize("missing", CONTENT)
def test_a_folder_without_its_files_is_no_adapter(missing: str, volume: Path, tmp_path: Path) -> None:
    run = adapter(tmp_path / "run")
    (run / missing).unlink()
    with pytest.raises(AdapterError, match=f"has no {missing}"):
        publish(volume, "kids", run, DETAILS)
    assert visible_tree(volume) == {}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@reused
@given(r=json_values, alpha=json_values, targets=json_values)
def test_a_config_of_any_content_is_published_readably_or_refused(
    r: Any, alpha: Any, targets: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    run = write_adapter(folder / "run", TINY, adapter_config(r=r, lora_alpha=alpha, target_modules=targets))
    try:
        manifest = publish(folder / "volume", "kids", run, DETAILS)
    except AdapterError as error:
        check_message(error)
        assert visible_tree(folder / "volume") == {}
    else:
        assert read_manifest(folder / "volume" / "kids" / manifest.version) == manifest


# Versions and going back


def test_versions_are_listed_oldest_first(volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = []
    for n, clock in enumerate((500.0, 100.0, 300.0)):
        monkeypatch.setattr(adapter_manifest.time, "time", lambda clock=clock: clock)
        published.append(publish(volume, "kids", adapter(tmp_path / str(n), content=n + 1), DETAILS).version)
    first, second, third = published
    assert versions(volume, "kids") == [second, third, first]


def test_only_complete_versions_are_listed(version_folder: Path, volume: Path) -> None:
    (volume / "kids" / ("0" * 16)).mkdir()
    (volume / "kids" / "notes").mkdir()
    (volume / "kids" / ("1" * 16)).mkdir()
    (volume / "kids" / ("1" * 16) / MANIFEST).write_text("{", encoding="utf-8")
    assert versions(volume, "kids") == [version_folder.name]
    assert versions(volume, "nobody") == []


def test_rollback_points_to_the_version_published_before(volume: Path, tmp_path: Path) -> None:
    one, two, three = (publish(volume, "kids", adapter(tmp_path / str(n), n), DETAILS).version for n in (1, 2, 3))
    assert rollback(volume, "kids") == two
    assert rollback(volume, "kids") == one
    with pytest.raises(AdapterError, match=f"no version before {one}"):
        rollback(volume, "kids")
    assert rollback(volume, "kids", three) == three
    assert read_current(volume, "kids") == three


@pytest.mark.parametrize("version", ["0" * 16, "", "..", "../elders", "CURRENT", "x" * 100])
def test_nobody_rolls_back_to_what_is_not_there(version: str, version_folder: Path, volume: Path) -> None:
    before = visible_tree(volume)
    with pytest.raises(AdapterError, match="has no version"):
        rollback(volume, "kids", version)
    assert visible_tree(volume) == before


def test_nobody_rolls_back_to_a_damaged_version(version_folder: Path, volume: Path, tmp_path: Path) -> None:
    publish(volume, "kids", adapter(tmp_path / "new", content=2), DETAILS)
    (version_folder / WEIGHTS).chmod(0o644)
    (version_folder / WEIGHTS).write_bytes(b"rotten")
    before = visible_tree(volume)
    with pytest.raises(AdapterError, match="not copied whole"):
        rollback(volume, "kids")
    assert visible_tree(volume) == before


# CURRENT


def test_a_name_without_current_has_no_current_version(volume: Path) -> None:
    assert read_current(volume, "kids") is None
    (volume / "kids").mkdir()
    assert read_current(volume, "kids") is None
    assert adapter_names(volume) == []


@reused
@given(content=st.binary(max_size=100))
@example(content=b"")
@example(content=b"0123456789abcdef\n")
@example(content=b"0123456789abcdef0123")
@example(content=b"0" * 5000)
@example(content=b"../../../../etc/\n")
def test_a_damaged_current_is_refused_in_one_line(content: bytes, volume: Path) -> None:
    (volume / "kids").mkdir(exist_ok=True)
    (volume / "kids" / CURRENT).write_bytes(content)
    try:
        version = read_current(volume, "kids")
    except AdapterError as error:
        check_message(error)
    else:
        assert version is not None
        assert content.strip() == version.encode()
        assert len(version) == 16


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_a_current_that_is_no_file_is_refused(kind: str, version_folder: Path, volume: Path) -> None:
    current = volume / "kids" / CURRENT
    current.unlink()
    if kind == "folder":
        current.mkdir()
    elif kind == "link":
        (volume / "elsewhere").write_text(version_folder.name, encoding="utf-8")
        current.symlink_to(volume / "elsewhere")
    else:
        os.mkfifo(current)
    with pytest.raises(AdapterError, match="cannot read kids/CURRENT"):
        read_current(volume, "kids")


# Verifying


def put(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


@reused
@given(file=st.sampled_from(CONTENT), at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_verify_refuses_any_flipped_bit(file: str, at: int, bit: int, version_folder: Path) -> None:
    manifest = read_manifest(version_folder)
    whole = (version_folder / file).read_bytes()
    at %= len(whole)
    put(version_folder / file, whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
    try:
        with pytest.raises(AdapterError, match="its hash differs"):
            verify(version_folder, manifest)
    finally:
        put(version_folder / file, whole)
    verify(version_folder, manifest)


@reused
@given(file=st.sampled_from(CONTENT), size=st.integers(0, 10_000), added=st.binary(max_size=3))
def test_verify_refuses_any_other_length(file: str, size: int, added: bytes, version_folder: Path) -> None:
    manifest = read_manifest(version_folder)
    whole = (version_folder / file).read_bytes()
    changed = whole + added if added else whole[: size % len(whole)]
    put(version_folder / file, changed)
    try:
        with pytest.raises(AdapterError, match="not copied whole"):
            verify(version_folder, manifest)
    finally:
        put(version_folder / file, whole)


@reused
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_manifest_with_any_byte_changed_still_tells_the_truth_of_the_files(
    at: int, byte: int, version_folder: Path
) -> None:
    """It has no hash of its own, so a changed metric goes unseen; but no change makes a reader load something else."""
    whole = (version_folder / MANIFEST).read_bytes()
    before = read_manifest(version_folder)
    at %= len(whole)
    put(version_folder / MANIFEST, whole[:at] + bytes([byte]) + whole[at + 1 :])
    try:
        after = read_manifest(version_folder)
        verify(version_folder, after)
    except AdapterError as error:
        check_message(error)
    else:
        kept = {"files", "version", "rank", "alpha", "targets"}
        assert after.model_dump(include=kept) == before.model_dump(include=kept)
    finally:
        put(version_folder / MANIFEST, whole)


@reused
@given(size=st.integers(0, 10_000))
def test_a_truncated_manifest_is_refused(size: int, version_folder: Path) -> None:
    whole = (version_folder / MANIFEST).read_bytes()
    put(version_folder / MANIFEST, whole[: size % len(whole)])
    try:
        with pytest.raises(AdapterError, match=f"{MANIFEST} is broken"):
            read_manifest(version_folder)
    finally:
        put(version_folder / MANIFEST, whole)


@pytest.mark.parametrize("kind", ["content", "manifest", "extra", "dangling", "folder"])
def test_verify_refuses_symbolic_links(kind: str, version_folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(version_folder)
    checked = version_folder
    if kind in ("content", "manifest"):
        path = version_folder / (WEIGHTS if kind == "content" else MANIFEST)
        (tmp_path / "moved").write_bytes(path.read_bytes())
        path.unlink()
        path.symlink_to(tmp_path / "moved")
    elif kind == "folder":
        checked = tmp_path / version_folder.name
        checked.symlink_to(version_folder)
    else:
        (version_folder / "more").symlink_to(tmp_path / ("nowhere" if kind == "dangling" else "run"))
    with pytest.raises(AdapterError, match="is a symbolic link"):
        verify(checked, manifest)


@pytest.mark.parametrize("file", CONTENT)
@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_verify_refuses_what_is_no_file(file: str, kind: str, version_folder: Path) -> None:
    manifest = read_manifest(version_folder)
    (version_folder / file).unlink()
    if kind == "folder":
        (version_folder / file).mkdir()
    elif kind == "pipe":
        os.mkfifo(version_folder / file)
    with pytest.raises(AdapterError, match=f"cannot read {file}"):
        verify(version_folder, manifest)


def test_verify_refuses_a_version_under_another_hash(version_folder: Path) -> None:
    manifest = read_manifest(version_folder).model_copy(update={"version": "0" * 16})
    with pytest.raises(AdapterError, match="not the hash of its content"):
        verify(version_folder, manifest)


@pytest.mark.parametrize("change", [{"rank": 16}, {"alpha": 32.0}, {"targets": ("q_proj",)}])
def test_verify_refuses_a_manifest_that_says_otherwise_than_the_config(
    change: dict[str, Any], version_folder: Path
) -> None:
    manifest = read_manifest(version_folder).model_copy(update=change)
    with pytest.raises(AdapterError, match="do not agree"):
        verify(version_folder, manifest)


def test_verify_refuses_more_or_fewer_files_than_an_adapter_has(version_folder: Path) -> None:
    manifest = read_manifest(version_folder)
    for files in ({CONFIG: manifest.files[CONFIG]}, manifest.files | {"../../x": manifest.files[CONFIG]}):
        with pytest.raises(AdapterError, match="must name exactly"):
            verify(version_folder, manifest.model_copy(update={"files": files}))


def test_a_manifest_of_a_later_schema_says_what_to_do(version_folder: Path) -> None:
    later = read_manifest(version_folder).model_copy(update={"schema_version": 9})
    put(version_folder / MANIFEST, later.model_dump_json().encode())
    with pytest.raises(AdapterError, match="schema 9, this program knows 1: update it"):
        read_manifest(version_folder)


def test_a_manifest_may_hold_more_than_this_program_knows(version_folder: Path) -> None:
    known = read_manifest(version_folder)
    more = json.loads(known.model_dump_json()) | {"later": {"field": 1}}
    put(version_folder / MANIFEST, json.dumps(more).encode())
    assert read_manifest(version_folder) == known


def test_metrics_that_are_no_numbers_do_not_make_a_manifest_unreadable(volume: Path, tmp_path: Path) -> None:
    details = DETAILS.model_copy(update={"metrics": {"loss": float("nan"), "best": float("inf")}})
    manifest = publish(volume, "kids", adapter(tmp_path / "run"), details)
    assert Manifest.model_validate_json((volume / "kids" / manifest.version / MANIFEST).read_bytes()) == manifest


# Reading files


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"1", b'"x"', b"null", b"{", b"[" * 100_000])
def test_what_is_no_json_object_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(AdapterError, match=r"file\.json") as refused:
        read_json(tmp_path / "file.json")
    assert len(str(refused.value).splitlines()) == 1


def read_or_refuse(path: Path, content: bytes) -> dict[str, TensorRecord] | None:
    """Fails for any exception but `AdapterError`, and for a message of more than a line."""
    path.write_bytes(content)
    try:
        return read_tensors(path)
    except AdapterError as error:
        check_message(error)
        return None


def framed(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
arrays = st.builds(
    lambda shape, dtype: np.zeros(shape, dtype), shapes, st.sampled_from([np.float32, np.float16, np.float64])
)


@reused
@given(tensors=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), arrays, max_size=4))
def test_a_right_safetensors_file_is_read_as_its_library_reads_it(
    tensors: dict[str, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    tensors.pop("__metadata__", None)
    found = read_or_refuse(tmp_path / "x.safetensors", safetensors_bytes(tensors))
    assert found is not None
    assert {name: record.shape for name, record in found.items()} == {n: t.shape for n, t in tensors.items()}
    assert set(found) == {name for name, _ in safetensors.deserialize((tmp_path / "x.safetensors").read_bytes())}


@reused
@given(content=st.binary(max_size=200))
@example(content=b"")
@example(content=struct.pack("<Q", 2**64 - 1))
@example(content=struct.pack("<Q", 60_000_000) + b"{}")
@example(content=framed(b"[" * 100_000))
@example(content=framed(b'{"a":' * 50_000))
@example(content=framed(b"[]"))
@example(content=framed(b'{"a": null}'))
@example(content=framed(b'{"a": {"dtype": "F32", "shape": [1e9], "data_offsets": [0, 4]}}', b"0000"))
@example(content=framed(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}'))
@example(content=framed(b'{"a": {"dtype": "F4", "shape": [], "data_offsets": [0, 0]}}'))
@example(content=framed(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', b"0000"))
@example(content=framed(b"1" * 5000))
@example(content=framed("{}".encode("utf-16")))
def test_no_bytes_raise_anything_but_an_adapter_error(content: bytes, tmp_path: Path) -> None:
    read_or_refuse(tmp_path / "x.safetensors", content)


header_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from(["F32", "BF16", "I4", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@reused
@given(header=header_values, data=st.binary(max_size=20))
def test_no_header_raises_anything_but_an_adapter_error(header: Any, data: bytes, tmp_path: Path) -> None:
    read_or_refuse(tmp_path / "x.safetensors", framed(json.dumps(header).encode(), data))


@reused
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_what_is_read_of_a_changed_file_is_what_its_library_reads(at: int, byte: int, tmp_path: Path) -> None:
    whole = safetensors_bytes({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})
    at %= len(whole)
    content = whole[:at] + bytes([byte]) + whole[at + 1 :]
    found = read_or_refuse(tmp_path / "x.safetensors", content)
    if found is not None:
        theirs = dict(safetensors.deserialize(content))
        assert {name: list(record.shape) for name, record in found.items()} == {
            n: t["shape"] for n, t in theirs.items()
        }


@reused
@given(size=st.integers(0, 10_000))
def test_a_truncated_safetensors_file_is_refused(size: int, tmp_path: Path) -> None:
    whole = safetensors_bytes({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})
    assert read_or_refuse(tmp_path / "x.safetensors", whole[: size % len(whole)]) is None


@pytest.mark.parametrize(
    ("offsets", "data"),
    [((0, 4), 8), ((4, 8), 8), ((0, 8), 4), ((8, 4), 8), ((0, 0), 0)],
    ids=["shorter than its shape", "a gap", "truncated", "backwards", "empty"],
)
def test_tensors_must_lie_where_and_as_large_as_they_say(offsets: tuple[int, int], data: int, tmp_path: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}
    assert read_or_refuse(tmp_path / "x.safetensors", framed(json.dumps(header).encode(), b"0" * data)) is None


@pytest.mark.parametrize(
    ("second", "data"), [((0, 8), 8), ((4, 12), 12), ((16, 24), 24)], ids=["same", "overlap", "gap"]
)
def test_tensors_may_not_overlap_or_leave_gaps(second: tuple[int, int], data: int, tmp_path: Path) -> None:
    header = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": offsets}
        for name, offsets in (("a", (0, 8)), ("b", second))
    }
    assert read_or_refuse(tmp_path / "x.safetensors", framed(json.dumps(header).encode(), b"0" * data)) is None
