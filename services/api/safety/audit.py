"""One line for each judged reply: what was decided, by which policy, where, and what really left. Never any text."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.api.safety.gate import Sent
from services.api.safety.verdicts import Hit, Judgement

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """A judged reply, or the part of it that there was when the client left (`complete` is false)."""

    request_id: str
    choice: int
    policy: str
    mode: str
    judgement: Judgement
    sent: Sent
    check_s: float
    complete: bool

    def json(self) -> dict[str, Any]:
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": self.request_id,
            "choice": self.choice,
            "policy": self.policy,
            "mode": self.mode,
            "verdict": self.judgement.verdict.word,
            "hits": [_hit(hit) for hit in self.judgement.hits],
            "sent": asdict(self.sent),
            "complete": self.complete,
            "check_ms": round(self.check_s * 1000, 3),
        }


def _hit(hit: Hit) -> Mapping[str, Any]:
    return {
        "rule": hit.rule,
        "verdict": hit.verdict.word,
        "term": hit.term,
        "part": hit.part,
        "start": hit.start,
        "end": hit.end,
    }


class AuditFile:
    """Appends records to a file, each in one write, so that several processes may share it. Without a path: nothing."""

    def __init__(self, path: Path | None) -> None:
        """Raises `OSError` when the file cannot be opened: a service that must record does not start without."""
        self._lock = threading.Lock()
        self._path = path
        self._file: int | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, record: Record) -> None:
        """A record that cannot be written is an error line, and no reason to withhold a reply that was judged."""
        if self._file is None:
            return
        line = json.dumps(record.json(), ensure_ascii=False, separators=(",", ":")) + "\n"
        try:
            with self._lock:
                os.write(self._file, line.encode())
        except OSError as error:
            log.error("safety record not written to %s: %s", self._path, error)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
