"""The keys file on disk: read with care, written whole, followed while the server runs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from services.api.access.keys import KeyIndex, KeysFile, KeysFileError

log = logging.getLogger(__name__)

LARGEST = 16 * 1024 * 1024  # bytes


def read_keys(path: Path) -> KeysFile:
    """Raises `KeysFileError`, also when others may write the file: whoever can write it can make himself a key."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise KeysFileError(f"{path} is not there: make it with 'python -m services.api.access create'") from None
    except OSError as error:
        raise KeysFileError(f"{path} cannot be read ({error.strerror}): check its owner and mode") from None
    if stat.S_IMODE(mode) & 0o022:
        raise KeysFileError(f"{path} can be written by others: chmod 600 it and look through its keys")
    if len(content) > LARGEST:
        raise KeysFileError(f"{path} is larger than {LARGEST} bytes: it is no keys file")
    try:
        return KeysFile.parse(content)
    except KeysFileError as error:
        raise KeysFileError(f"{path}: {error}") from None


def write_keys(path: Path, file: KeysFile) -> None:
    """Replaces the file by one step; only its owner may read it. A reader sees the old one or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(file.text())
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One writer at a time: two commands at once lose neither's key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


class KeyStore:
    """The keys in force. `run` follows the file; a broken one is refused and the old keys stay."""

    def __init__(
        self, path: Path | None, plain: Sequence[str] = (), on_reload: Callable[[str], None] = lambda result: None
    ) -> None:
        """Raises `KeysFileError`: a service whose keys cannot be read does not start."""
        self._path = path
        self._plain = tuple(plain)
        self._on_reload = on_reload
        self._seen: tuple[int, int, int, int] | None = self._look()
        self.asks = path is not None or bool(self._plain)  # whether a key is needed at all
        self.index = KeyIndex(read_keys(path) if path else KeysFile.new(), self._plain)

    async def run(self, poll_s: float) -> None:
        """Looks at the file for ever. Renames onto it, as mounted volumes and our own command do, are seen too."""
        while self._path is not None:
            await asyncio.sleep(poll_s)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Takes up a changed file. A broken one is one log line and a metric, and is looked at again when it changes."""
        looked = self._look()
        if self._path is None or looked == self._seen:
            return
        self._seen = looked
        try:
            file = read_keys(self._path)
        except KeysFileError as error:
            log.error("keys file refused, the keys before stay in force: %s", error)
            self._on_reload("refused")
            return
        self.index = KeyIndex(file, self._plain)
        log.info("keys file taken up: %d keys", len(file.keys))
        self._on_reload("taken_up")

    def _look(self) -> tuple[int, int, int, int] | None:
        try:
            found = self._path.stat() if self._path else None
        except OSError:
            return None
        return (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode) if found else None
