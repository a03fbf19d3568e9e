"""Publishers are killed for good, run into each other, and meet disks that are full: readers never see half of anything."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.contract.adapter_manifest import WEIGHTS, publish, read_current, read_manifest, verify, versions
from services.contract.staging import clear_staging, staging_folder
from tests.trainer.adapters import ROOT, visible_tree, write_adapter
from tests.trainer.publish_child import DETAILS, NAME

STEPS = ("clear", "stage", "check", "manifest", "rename", "current", "done")
NOBODY = 65534


def adapter(folder: Path, content: float) -> Path:
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    return write_adapter(folder, {key: np.full((8, 64), content, np.float32)})


def child(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.trainer.publish_child", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def check_readable(volume: Path) -> None:
    for version in versions(volume, NAME):
        verify(volume / NAME / version, read_manifest(volume / NAME / version))
    assert read_current(volume, NAME) in versions(volume, NAME)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume on which the name has a current version already."""
    publish(tmp_path / "volume", NAME, adapter(tmp_path / "old", 1), DETAILS)
    return tmp_path / "volume"


@pytest.mark.parametrize("step", STEPS)
def test_a_publisher_killed_at_any_step_leaves_the_old_version_current(step: str, volume: Path, tmp_path: Path) -> None:
    old = read_current(volume, NAME)
    new = adapter(tmp_path / "new", 2)
    killed = child("die", volume, new, PUBLISH_STOP_AT=step)
    assert killed.returncode == -signal.SIGKILL
    check_readable(volume)
    assert (read_current(volume, NAME) == old) == (step != "done")
    manifest = publish(volume, NAME, new, DETAILS)
    assert read_current(volume, NAME) == manifest.version != old
    check_readable(volume)
    assert list((volume / ".staging").iterdir()) == []


def sweep(fault: str, volume: Path, tmp_path: Path) -> list[dict[str, Any]]:
    (tmp_path / "scratch").mkdir()
    done = child("sweep", fault, volume, adapter(tmp_path / "new", 2), tmp_path / "scratch")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_a_publisher_killed_before_any_change_of_the_file_system_harms_nothing(volume: Path, tmp_path: Path) -> None:
    old = read_current(volume, NAME)
    found = sweep("kill", volume, tmp_path)
    *killed, whole = found
    assert len(killed) > 10
    assert {run["status"] for run in killed} == {-signal.SIGKILL}
    new = whole["current"]
    for run in found:
        assert (run["bad"], run["strange"]) == ([], []), run
        assert run["current"] in (old, new), run
        assert run["unchanged"] or new in run["versions"], run
        assert (run["after"]["current"], run["after"]["bad"], run["after"]["staging"]) == (new, [], []), run
    becomes_current = [run["current"] == new for run in found]
    assert becomes_current == sorted(becomes_current)
    assert becomes_current[0] is False


@pytest.mark.parametrize("fault", ["fail", "fill"])
def test_a_change_that_fails_leaves_the_volume_byte_for_byte_as_it_was(
    fault: str, volume: Path, tmp_path: Path
) -> None:
    """`fail`: one change fails once, whichever it is. `fill`: from that change on, no file or folder can be made."""
    *struck, whole = sweep(fault, volume, tmp_path)
    refused = [run for run in struck if run["status"] == 1]
    assert len(refused) > 5
    assert all(run["unchanged"] for run in refused), [run for run in refused if not run["unchanged"]]
    for run in struck:
        if run["status"] == 2:  # only clearing up after the fact has failed
            assert run["current"] == whole["current"], run
        assert (run["after"]["current"], run["after"]["bad"]) == (whole["current"], []), run


def test_the_first_version_of_a_name_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for fault in ("kill", "fail"):
        (tmp_path / fault).mkdir()
        *struck, whole = sweep(fault, tmp_path / "empty", tmp_path / fault)
        for run in struck:
            assert run["current"] in (None, whole["current"]), run
            assert (run["bad"], run["strange"] in ([], [NAME])) == ([], True), run
            assert run["status"] != 1 or run["unchanged"], run


@pytest.mark.parametrize("same", [False, True], ids=["of different content", "of the same content"])
def test_publishers_at_once_all_end_well(same: bool, volume: Path, tmp_path: Path) -> None:
    folders = [[adapter(tmp_path / f"{n}-{k}", k if same else 10 * n + k) for k in range(12)] for n in range(3)]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.publish_child", "publish", str(volume), *map(str, own)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for own in folders
    ]
    told = [process.communicate(timeout=300)[0] for process in running]
    assert [(process.returncode, text) for process, text in zip(running, told, strict=True)] == [(0, "")] * 3
    check_readable(volume)
    contents = {(folder / WEIGHTS).read_bytes() for own in folders for folder in (*own, tmp_path / "old")}
    assert len(versions(volume, NAME)) == len(contents)
    assert list((volume / ".staging").iterdir()) == []


def test_clearing_leaves_alone_what_a_living_publisher_writes(tmp_path: Path) -> None:
    with staging_folder(tmp_path) as folder:
        (folder / "file").write_text("x", encoding="utf-8")
        os.utime(folder, (0, 0))
        clear_staging(tmp_path)
        assert (folder / "file").is_file()
    assert list((tmp_path / ".staging").iterdir()) == []


def test_without_locks_age_tells_what_is_abandoned(tmp_path: Path) -> None:
    young, old = (tmp_path / ".staging" / name for name in ("young", "old"))
    for folder in (young, old):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    clear_staging(tmp_path)
    assert list((tmp_path / ".staging").iterdir()) == [young]


def test_a_file_that_may_not_grow_is_a_failed_publication(volume: Path, tmp_path: Path) -> None:
    before = visible_tree(volume)
    done = child("file-limit", 1000, volume, adapter(tmp_path / "new", 2))
    assert done.returncode == 1
    assert done.stdout == f"cannot publish to {volume}: File too large: raise the limit on file sizes\n"
    assert visible_tree(volume) == before
    assert list((volume / ".staging").iterdir()) == []


def test_a_full_disk_is_a_failed_publication(tmp_path: Path) -> None:
    """On a small file system of its own, which the kernel lets a user make in a name space of his own."""
    volume = tmp_path / "small"
    volume.mkdir()
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    large = write_adapter(tmp_path / "large", {key: np.ones((8, 20_000), np.float32)})
    small = adapter(tmp_path / "new", 2)
    inside = ["sh", "-c", 'mount -t tmpfs -o size=200k none "$0" && exec "$@"', str(volume)]
    program = [sys.executable, "-c", _TRY_TWICE, str(volume), str(small), str(large)]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *inside, *program],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no name spaces of one's own here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"cannot publish to {volume}: No space left on device: free some space", "True"]


_TRY_TWICE = """
import sys
from pathlib import Path
from services.contract.adapter_manifest import AdapterError, publish
from tests.trainer.adapters import visible_tree
from tests.trainer.publish_child import DETAILS, NAME
volume, small, large = map(Path, sys.argv[1:])
publish(volume, NAME, small, DETAILS)
before = visible_tree(volume)
try:
    publish(volume, NAME, large, DETAILS)
except AdapterError as error:
    print(error)
print(visible_tree(volume) == before and not list((volume / ".staging").iterdir()))
"""


def test_a_volume_that_this_user_may_not_write_is_a_failed_publication() -> None:
    with tempfile.TemporaryDirectory(prefix="medthink-volume-") as outside:
        Path(outside).chmod(0o755)  # pytest's own folders are closed to other users
        run, volume = adapter(Path(outside) / "run", 2), Path(outside) / "volume"
        volume.mkdir(mode=0o555)
        user = NOBODY if os.geteuid() == 0 else os.geteuid()
        done = child("as-user", user, volume, run)
        assert (done.returncode, done.stdout) == (
            1,
            f"cannot publish to {volume}: Permission denied: let this user write there\n",
        )
        assert visible_tree(volume) == {}


def test_a_publisher_that_is_overtaken_by_another_of_the_same_content_ends_well(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, rename = adapter(tmp_path / "new", 2), os.rename
    overtaken: list[str] = []

    def be_slow(source: Path, target: Path) -> None:
        if target.parent.name == NAME and not overtaken:
            overtaken.append(target.name)
            publish(volume, NAME, new, DETAILS)
        rename(source, target)

    monkeypatch.setattr(os, "rename", be_slow)
    assert publish(volume, NAME, new, DETAILS).version == overtaken[0] == read_current(volume, NAME)
    check_readable(volume)
    assert list((volume / ".staging").iterdir()) == []


def test_a_lock_that_is_cleared_before_it_is_held_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    cleared: list[Path] = []

    def be_slow(descriptor: int, operation: int) -> None:
        if not cleared:
            cleared.extend((tmp_path / ".staging").iterdir())
            cleared[0].unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", be_slow)
    with staging_folder(tmp_path) as folder:
        assert len(cleared) == 1
        assert folder.with_suffix(".lock").is_file()
        assert folder.name != cleared[0].stem


def test_a_volume_without_locks_takes_adapters_all_the_same(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    manifest = publish(volume, NAME, adapter(tmp_path / "new", 2), DETAILS)
    assert read_current(volume, NAME) == manifest.version
    assert list((volume / ".staging").iterdir()) == []
