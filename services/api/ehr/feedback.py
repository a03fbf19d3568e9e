"""What became of cards: each outcome kept once, as a line of JSON, without the comment that a clinician may have written."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from services.api.ehr.outcomes import HookError

log = logging.getLogger(__name__)

_MOST_KNOWN: Final = 200_000
_MOST_AT_ONCE: Final = 500
_WORD: Final = 128


class FeedbackFile:
    """Appends outcomes to a file; the same outcome a second time is no second line. Without a path they are only counted."""

    def __init__(self, path: Path | None) -> None:
        """Opens nothing yet."""
        self._path = path
        self._known: OrderedDict[str, None] = OrderedDict()
        self._read = False
        self._lock = threading.Lock()

    def add(self, service: str, issuer: str, entries: list[dict[str, Any]]) -> int:
        """How many were new. Raises `OSError` when they cannot be kept: then the EHR is told to send them again."""
        with self._lock:
            self._read_known()
            fresh = {}
            for entry in entries:
                key = _key(service, issuer, entry)
                if key not in self._known:
                    fresh[key] = entry
            if self._path is not None and fresh:
                now = datetime.now(UTC).isoformat(timespec="milliseconds")
                lines = [
                    json.dumps(
                        {"key": key, "time": now, "service": service, "iss": issuer, **entry}, ensure_ascii=False
                    )
                    + "\n"
                    for key, entry in fresh.items()
                ]
                append(self._path, "".join(lines))
            self._known |= dict.fromkeys(fresh)
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
            return len(fresh)

    def _read_known(self) -> None:
        if self._read:
            return
        self._read = True
        if self._path is None or not self._path.exists():
            return
        with self._path.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    self._known[str(json.loads(line)["key"])] = None
                except (ValueError, KeyError, TypeError):
                    log.warning("a line of the feedback file cannot be read")


def append(path: Path, text: str) -> None:
    """Text to a file's end in one write, so that several processes may share it; the file is the operator's alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def read_feedback(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Checked entries of a feedback request. Raises `HookError` 400."""
    entries = body.get("feedback")
    if not isinstance(entries, list) or not entries or len(entries) > _MOST_AT_ONCE:
        raise HookError(400, f"feedback must be a list of 1 to {_MOST_AT_ONCE} outcomes.", expression="feedback")
    return [_entry(one, n) for n, one in enumerate(entries)]


def _entry(one: Any, n: int) -> dict[str, Any]:
    where = f"feedback[{n}]"
    if not isinstance(one, dict):
        raise HookError(400, "Each outcome must be an object.", expression=where)
    card, outcome, when = one.get("card"), one.get("outcome"), one.get("outcomeTimestamp")
    if not _is_word(card):
        raise HookError(400, "card must be the uuid of a card.", expression=f"{where}.card")
    if outcome not in ("accepted", "overridden"):
        raise HookError(400, "outcome must be accepted or overridden.", expression=f"{where}.outcome")
    if not _is_word(when) or not _is_time(when):
        raise HookError(400, "outcomeTimestamp must be an ISO 8601 time.", expression=f"{where}.outcomeTimestamp")
    accepted = one.get("acceptedSuggestions")
    if outcome == "accepted" and not isinstance(accepted, list):
        raise HookError(
            400, "acceptedSuggestions must list what was accepted.", expression=f"{where}.acceptedSuggestions"
        )
    found: dict[str, Any] = {"card": card, "outcome": outcome, "outcomeTimestamp": when}
    if isinstance(accepted, list):
        ids = [s["id"] for s in accepted if isinstance(s, dict) and _is_word(s.get("id"))]
        found |= {"acceptedSuggestions": ids} if ids else {}
    reason = one.get("overrideReason")
    code = reason.get("reason") if isinstance(reason, dict) else None
    if isinstance(code, dict):  # userComment is free text, in which anybody's name may stand: not kept
        found |= {f"reason_{k}": code[k] for k in ("system", "code") if _is_word(code.get(k))}
    return found


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _WORD


def _is_time(value: Any) -> bool:
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


def _key(service: str, issuer: str, entry: Mapping[str, Any]) -> str:
    parts = (service, issuer, entry["card"], entry["outcome"], entry["outcomeTimestamp"])
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
