"""A running MedThink API as `answer` and the judge need it: JSON over HTTP, patient with a busy server, plain about errors."""

from __future__ import annotations

import http.client
import json
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LONGEST_WAIT_S = 60.0
_RETRIED = (408, 429, 500, 502, 503, 504)


class ServerError(ValueError):
    """The server cannot be asked; the message names what it said and the next step."""


class ServerGone(ServerError):
    """It does not answer, or was busy at every attempt."""


class RequestRefused(ServerError):
    """It refuses what it was asked: asking again would not help."""


def _nothing(_text: str) -> None:
    return None


@dataclass(frozen=True)
class ApiClient:
    """`url` without /v1. A request that meets a busy or restarting server is tried again, up to `attempts` times in all.

    `stop` ends every wait at once. `on_wait` is told of each wait.
    """

    url: str
    key: str = "EMPTY"
    timeout_s: float = 600.0
    attempts: int = 8
    first_wait_s: float = 1.0
    stop: threading.Event = field(default_factory=threading.Event)
    on_wait: Callable[[str], None] = _nothing

    def get(self, path: str) -> dict[str, Any]:
        return self._ask(path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._ask(path, json.dumps(body, ensure_ascii=False).encode())

    def _ask(self, path: str, body: bytes | None) -> dict[str, Any]:
        """Raises `ServerGone` or `RequestRefused`."""
        for attempt in range(1, self.attempts + 1):
            try:
                return self._send(path, body)
            except urllib.error.HTTPError as error:
                told = _told(error)
                if error.code not in _RETRIED:
                    raise RequestRefused(f"{self.url}{path} answered {error.code}: {told}") from error
                reason, wait_s = f"it answered {error.code}: {told}", _retry_after(error)
            except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut off
                reason, wait_s = f"it does not answer ({getattr(error, 'reason', None) or error!r})", None
            if attempt == self.attempts:
                break
            # Without word from the server: doubling, and apart from the other requests that failed with this one.
            wait_s = self.first_wait_s * 2 ** (attempt - 1) * random.uniform(0.5, 1) if wait_s is None else wait_s
            self.on_wait(f"{reason}; asking again in {min(wait_s, LONGEST_WAIT_S):.0f} s")
            if self.stop.wait(min(wait_s, LONGEST_WAIT_S)):
                break
        raise ServerGone(
            f"{self.url} was asked {attempt} times and {reason}. Start it, then give the same command again"
        )

    def _send(self, path: str, body: bytes | None) -> dict[str, Any]:
        request = urllib.request.Request(self.url.rstrip("/") + path, body, {"Authorization": f"Bearer {self.key}"})
        if body is not None:
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
            content = response.read()
        try:
            reply = json.loads(content)
        except ValueError as error:
            raise RequestRefused(f"{request.full_url} answered no JSON: is this the API's address?") from error
        if not isinstance(reply, dict):
            raise RequestRefused(f"{request.full_url} answered no JSON object: is this the API's address?")
        return reply


def _told(error: urllib.error.HTTPError) -> str:
    """The message of OpenAI's error envelope, or the body's begin."""
    try:
        content = error.read()
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        return str(json.loads(content)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return content.decode(errors="replace")[:200] or str(error.reason)


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds; a date, which this API never sends, counts as nothing said."""
    try:
        return max(0.0, float(error.headers["Retry-After"]))
    except (TypeError, ValueError):
        return None
