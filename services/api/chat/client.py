"""A chat client over HTTP: standard library only, any server that speaks OpenAI's chat completions."""

from __future__ import annotations

import http.client
import json
import os
import urllib.parse
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

CONNECT_LIMIT_S = 10.0
SILENCE_LIMIT_S = 120.0  # servers send comments while they think
_NO_SESSIONS = {"unsupported_parameter", "not_found", "method_not_allowed"}


class ChatError(Exception):
    """What the server refused, or why it was not reached; the message is for people. `code` is the server's, or ''."""

    def __init__(self, message: str, code: str = "", status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


@dataclass(frozen=True, slots=True)
class Piece:
    """One step of a reply. `replaces`: `content` stands in place of all that was shown."""

    reasoning: str = ""
    content: str = ""
    replaces: bool = False
    safety: Mapping[str, Any] = field(default_factory=dict)


def preferred_language() -> str:
    """Of error messages, as the terminal is set: the first of LC_ALL, LC_MESSAGES and LANG that is there."""
    found = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := os.environ.get(name))), "")
    return "zh-CN" if found.lower().startswith("zh") else "en"


class Client:
    """One server, one key. Every call opens a connection of its own, so that a restarted server is simply there again."""

    def __init__(self, url: str, key: str = "") -> None:
        """`url` with or without /v1. Raises `ChatError` for one that is none."""
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ChatError(f"{url!r} is no address of a server: give one such as http://127.0.0.1:8000")
        self.address = f"{parts.scheme}://{parts.netloc}"
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"content-type": "application/json", "accept-language": preferred_language()}
        if key:
            self._headers["authorization"] = f"Bearer {key}"

    def models(self) -> list[dict[str, Any]]:
        """The server's model cards. Raises `ChatError`."""
        found: list[dict[str, Any]] = self._json("GET", "/v1/models")["data"]
        return found

    def session(self, session_id: str) -> dict[str, Any]:
        """A stored session with its turns. Raises `ChatError`."""
        return self._json("GET", f"/v1/sessions/{urllib.parse.quote(session_id, safe='')}")

    def new_session(self, title: str) -> str | None:
        """Id of a session made now; None on a server that keeps none. Raises `ChatError`."""
        try:
            return str(self._json("POST", "/v1/sessions", {"metadata": {"title": title[:60]}})["id"])
        except ChatError as error:
            if error.code in _NO_SESSIONS or error.status in (404, 405):
                return None
            raise

    def chat(self, body: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """The reply as it is written; closing the iterator closes the connection, which stops the server's work.

        Raises `ChatError`, also when the stream ends before it is done.
        """
        connection = self._connection()
        try:
            response = self._send(connection, "POST", "/v1/chat/completions", {**body, "stream": True})
            for data in _events(response):
                if data == "[DONE]":
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    raise _refusal(chunk, 0)
                yield from _pieces(chunk)
            raise ChatError("the connection ended in the middle of the answer: ask again")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ChatError(f"the connection to {self.address} broke: {error}. Ask again.") from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=CONNECT_LIMIT_S)

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        connection = self._connection()
        try:
            found = json.loads(self._send(connection, method, path, body).read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ChatError(f"the answer of {self.address} cannot be read: {error}") from error
        finally:
            connection.close()
        if not isinstance(found, dict):
            raise ChatError(
                f"{self.address} answers {path} with something else than a JSON object: is it the right address?"
            )
        return found

    def _send(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Mapping[str, Any] | None
    ) -> http.client.HTTPResponse:
        try:
            connection.connect()
            connection.sock.settimeout(SILENCE_LIMIT_S)
            text = None if body is None else json.dumps(body, ensure_ascii=False).encode()
            connection.request(method, self._base + path, text, self._headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise ChatError(
                f"no server answers at {self.address} ({error}): start one with `make serve`, or name another with --url"
            ) from error
        if response.status >= 400:
            raise _refusal(_envelope(response.read()), response.status)
        return response


def _envelope(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(body: Mapping[str, Any], status: int) -> ChatError:
    error = body.get("error")
    known: Mapping[str, Any] = error if isinstance(error, dict) else {}
    message = str(known.get("message") or f"the server answered with HTTP status {status}")
    request_id = known.get("request_id")
    return ChatError(
        f"{message} (request id {request_id})" if request_id else message, str(known.get("code") or ""), status
    )


def _events(response: http.client.HTTPResponse) -> Iterator[str]:
    """The data of server-sent events; one that is cut off does not count."""
    data: list[str] = []
    while line := response.readline():
        text = line.decode("utf-8").rstrip("\r\n") if line.endswith(b"\n") else ""
        if text.startswith("data:"):
            data.append(text[5:].removeprefix(" "))
        elif not text and data and line.endswith(b"\n"):
            yield "\n".join(data)
            data = []


def _pieces(chunk: Mapping[str, Any]) -> Iterator[Piece]:
    safety = chunk.get("safety") or {}
    choices = chunk.get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    if "replace" in safety:
        yield Piece(content=str(safety["replace"]), replaces=True, safety=safety)
        return
    reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
    content = delta.get("content") or ""
    if reasoning or content or safety:
        yield Piece(reasoning, content, safety=safety)
