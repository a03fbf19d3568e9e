"""Folders under `.staging` of a volume, where a publisher works before one rename makes its work visible.

A publisher holds a lock on `<folder>.lock` as long as it lives, so that what a killed one left is told from what another
is writing this moment. Where the volume knows no locks, age decides. A wrong guess costs the other publisher its run,
never a reader: what is cleared is renamed first, and of two renames of one folder only one happens.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

STAGING = ".staging"
_LOCK, _DEAD = ".lock", ".dead"
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK)


@contextlib.contextmanager
def staging_folder(volume: Path) -> Iterator[Path]:
    """An empty folder of the caller's own, removed at the end with what is still in it. Raises `OSError`."""
    root = volume / STAGING
    root.mkdir(parents=True, exist_ok=True)
    while (lock := _claim(locked := root / f"{uuid.uuid4().hex}{_LOCK}")) is None:
        continue  # somebody who clears took it for abandoned between its making and its locking
    folder = locked.with_suffix("")
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _release(locked, lock)


def clear_staging(volume: Path, older_than_s: float = 3600.0) -> None:
    """Removes what dead publishers left; a folder without a lock counts as dead when it has not changed for so long."""
    root = volume / STAGING
    left = sorted(root.iterdir()) if root.is_dir() else []
    for path in left:
        with contextlib.suppress(OSError):
            if path.suffix == _DEAD:
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == _LOCK:
                _clear_if_unlocked(path)
            elif not path.with_suffix(_LOCK).exists() and time.time() - path.stat().st_mtime > older_than_s:
                _remove(path)


def write_synced(path: Path, content: bytes) -> None:
    """Writes a file that is on the disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        sync_file(file.fileno())


def sync_file(descriptor: int) -> None:
    """Puts a finished file on the disk, read-only, and readable for the server's user whatever the publisher's umask."""
    with contextlib.suppress(PermissionError):  # a volume without file modes
        os.fchmod(descriptor, 0o444)
    os.fsync(descriptor)


def make_folder(path: Path) -> None:
    """A folder that the server's user can read, whatever the publisher's umask. Raises `OSError`."""
    path.mkdir()
    with contextlib.suppress(PermissionError):
        path.chmod(0o755)


def sync_folder(folder: Path) -> None:
    """Puts a folder's entries on the disk; some network file systems know no such thing."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    finally:
        os.close(descriptor)


def _clear_if_unlocked(locked: Path) -> None:
    lock = _claim(locked)
    if lock is None:
        return
    try:
        folder = locked.with_suffix("")
        if folder.is_dir():
            _remove(folder)
    finally:
        _release(locked, lock)


def _remove(folder: Path) -> None:
    dead = folder.with_suffix(_DEAD)
    os.rename(folder, dead)
    shutil.rmtree(dead, ignore_errors=True)


def _claim(path: Path) -> int | None:
    """A descriptor that holds the lock; `None` when somebody else has it, or has just removed the file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return descriptor
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            path.unlink(missing_ok=True)  # no lock file, so age decides
            return descriptor
    os.close(descriptor)
    return None


def _release(path: Path, lock: int) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(lock)
