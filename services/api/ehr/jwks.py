"""Public keys of an EHR: fetched from the one configured address, kept for an hour, fetched again for a key id that is new."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import orjson

from services.api.ehr.clients import Client

log = logging.getLogger(__name__)

KEPT_S: Final = 3600.0
STALE_S: Final = 86_400.0  # how long old keys serve while their address does not answer
AGAIN_S: Final = 30.0  # at most one fetch in this time, however many unknown key ids come
_FETCH_S: Final = 2.0
_MOST_BYTES: Final = 256 * 1024


@dataclass
class _Kept:
    keys: list[Mapping[str, Any]] = field(default_factory=list)
    fetched: float = -1e9
    tried: float = -1e9
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Keys:
    """The keys of all clients."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    async def find(self, client: Client, kid: str, algorithm: str) -> Mapping[str, Any] | None:
        """The JWK of an id that may sign with an algorithm; `None` when there is none, or it cannot be fetched."""
        if client.jwks is not None:
            return _matching(client.jwks["keys"], kid, algorithm)
        kept = self._kept.setdefault(client.issuer, _Kept())
        found = _matching(kept.keys, kid, algorithm)
        age = time.monotonic() - kept.fetched
        if found is not None and age < KEPT_S:
            return found
        async with kept.lock:
            if time.monotonic() - kept.tried >= AGAIN_S:
                kept.tried = time.monotonic()
                await self._fetch(client, kept)
        stale = time.monotonic() - kept.fetched > STALE_S
        return None if stale else _matching(kept.keys, kid, algorithm)

    async def _fetch(self, client: Client, kept: _Kept) -> None:
        assert client.jwks_url is not None
        try:
            # No redirects and no proxy of the environment: keys come from the configured address or not at all.
            async with (
                asyncio.timeout(_FETCH_S),
                httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=_FETCH_S) as http,
                http.stream("GET", client.jwks_url, headers={"accept": "application/json"}) as response,
            ):
                response.raise_for_status()
                body = b""
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > _MOST_BYTES:
                        raise ValueError("too large")
            keys = orjson.loads(body)["keys"]
            kept.keys = [key for key in keys if isinstance(key, dict)]
            kept.fetched = time.monotonic()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError, TimeoutError) as error:
            log.error("keys of %s cannot be fetched from %s: %s", client.issuer, client.jwks_url, type(error).__name__)


def _matching(keys: list[Mapping[str, Any]], kid: str, algorithm: str) -> Mapping[str, Any] | None:
    kind = {"ES384": "EC", "RS384": "RSA"}[algorithm]
    for key in keys:
        if key.get("kid") != kid or key.get("kty") != kind or key.get("use", "sig") != "sig":
            continue
        if key.get("alg", algorithm) == algorithm:
            return key
    return None
