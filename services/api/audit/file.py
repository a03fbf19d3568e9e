"""Audit entries on disk: a file a day, appended to by a thread of its own, old files removed. The token path never waits."""

from __future__ import annotations

import hmac
import json
import logging
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from services.api.audit.entry import FORMS, Form
from services.api.audit.trail import Trail

log = logging.getLogger(__name__)

MOST_WAITING = 10_000  # entries kept in memory while the disk cannot take them
RETRY_S = 1.0
_NAME = re.compile(r"audit-(\d{4}-\d{2}-\d{2})\.jsonl")
_END = None


def day_file(folder: Path, day: date) -> Path:
    return folder / f"audit-{day.isoformat()}.jsonl"


class AuditTrail:
    """Append-only: each entry is one write to a file opened for appending, so that several processes may share a folder.

    Request and answer are recorded as HMAC-SHA-256 under a key that lies beside the files (`.hash-key`, mode 0600): who has the
    text can prove that it is the one, and who has the entries alone cannot guess short texts from their hashes.
    """

    def __init__(
        self,
        folder: Path,
        form: Form = "json",
        retention_days: int = 0,
        on_entry: Callable[[str], None] = lambda result: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`retention_days` 0 keeps all. `on_entry` is told "written", "failed" (tried again) or "lost".

        Raises `OSError` when the folder cannot be written: a service that must record does not start without.
        """
        self._folder = folder
        self._write_form = FORMS[form]
        self._retention = retention_days
        self._on_entry = on_entry
        self._clock = clock
        folder.mkdir(parents=True, exist_ok=True)
        self._hash_key = _hash_key(folder / ".hash-key")
        self._day: date | None = None
        self._file: int | None = None
        self._open_day()
        self.is_broken = False
        self._waiting: queue.Queue[Trail | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def hasher(self) -> hmac.HMAC:
        """A keyed hash to feed with what was received, or with what was sent."""
        return hmac.new(self._hash_key, digestmod="sha256")

    def add(self, trail: Trail) -> None:
        """Hands an entry to the thread; at once. Without room the entry is lost, loudly."""
        try:
            self._waiting.put_nowait(trail)
        except queue.Full:
            self._on_entry("lost")
            log.error("audit entry lost: %d are waiting and cannot be written", MOST_WAITING, extra=_about(trail))

    def close(self, limit_s: float = 5.0) -> None:
        """Writes what waits, and ends."""
        try:
            self._waiting.put(_END, timeout=limit_s)
        except queue.Full:
            return
        self._thread.join(limit_s)

    def _run(self) -> None:
        closing = False
        while not closing:
            entry = self._waiting.get()
            if entry is _END:
                break
            while not self._write(entry):
                time.sleep(RETRY_S)
                if _last_waits(self._waiting):
                    log.error("audit entries lost at the end: they could not be written")
                    closing = True
                    break
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, trail: Trail) -> bool:
        line = json.dumps(self._write_form(trail), ensure_ascii=False, separators=(",", ":")) + "\n"
        try:
            self._open_day()
            assert self._file is not None
            os.write(self._file, line.encode())
            if self._waiting.empty():
                os.fsync(self._file)
        except OSError as error:
            if not self.is_broken:
                log.error("audit trail not written (%s): it is tried again", error.strerror, extra=_about(trail))
            self.is_broken = True
            self._on_entry("failed")
            return False
        if self.is_broken:
            log.info("audit trail is written again")
        self.is_broken = False
        self._on_entry("written")
        return True

    def _open_day(self) -> None:
        """Today's file (UTC). One that was taken away is made anew, and old ones are removed with each new day."""
        today = datetime.fromtimestamp(self._clock(), UTC).date()
        path = day_file(self._folder, today)
        if self._file is not None and self._day == today and _is(path, self._file):
            return
        opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        if self._file is not None:
            os.close(self._file)
        self._file, self._day = opened, today
        self._remove_old(today)

    def _remove_old(self, today: date) -> None:
        if not self._retention:
            return
        for path in self._folder.iterdir():
            found = _NAME.fullmatch(path.name)
            if found and date.fromisoformat(found[1]) < today - timedelta(days=self._retention):
                path.unlink(missing_ok=True)
                log.info("audit file removed after %d days: %s", self._retention, path.name)


def _is(path: Path, descriptor: int) -> bool:
    try:
        there, ours = path.stat(), os.fstat(descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _hash_key(path: Path) -> bytes:
    """The folder's key; the first process makes it. Linked into place whole, so that nobody reads half a key."""
    if not path.exists():
        own = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(own, path)
        except FileExistsError:
            pass
        finally:
            own.unlink()
    try:
        return bytes.fromhex(path.read_text(encoding="ascii").strip())
    except ValueError:
        raise OSError(f"{path} is no key of ours: remove it, and hashes from now on have a new one") from None


def _last_waits(waiting: queue.Queue[Trail | None]) -> bool:
    with waiting.mutex:
        return bool(waiting.queue) and waiting.queue[-1] is _END


def _about(trail: Trail) -> dict[str, Any]:
    return {"fields": {"about": trail.request_id}}
