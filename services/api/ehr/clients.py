"""Which EHRs may call, and where their public keys are: a JSON file of the operator's.

    {"clients": [{"iss": "https://ehr.example.org/fhir", "jwks_url": "https://ehr.example.org/jwks.json", "tenants": ["a"]}]}

`jwks` in place of `jwks_url` holds the keys themselves, for networks without a way out. `jwks_url` is the only address that
is ever asked for keys: a token's `jku` must be it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ClientsError(OSError):
    """The file cannot be used. The message says what to mend."""


@dataclass(frozen=True, slots=True)
class Client:
    """One trusted issuer. `tenants` empty: any tenant of it."""

    issuer: str
    jwks_url: str | None
    jwks: Mapping[str, Any] | None
    tenants: frozenset[str] = frozenset()


def read_clients(path: Path) -> dict[str, Client]:
    """Trusted issuers by name. Raises `ClientsError`."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["clients"]
        found = [_client(entry) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ClientsError(f"{path}: {error!s} (see docs/ehr.md for the form of this file)") from error
    clients = {client.issuer: client for client in found}
    if len(clients) != len(found):
        raise ClientsError(f"{path}: an issuer stands there twice (see docs/ehr.md for the form of this file)")
    return clients


def _client(entry: Any) -> Client:
    if not isinstance(entry, dict) or not isinstance(entry.get("iss"), str) or not entry["iss"]:
        raise ValueError("each client needs iss")
    url, keys, tenants = entry.get("jwks_url"), entry.get("jwks"), entry.get("tenants", [])
    if (url is None) == (keys is None):
        raise ValueError(f"{entry['iss']} needs either jwks_url or jwks")
    if url is not None:
        place = urlsplit(url)
        if place.scheme != "https" and not (place.scheme == "http" and place.hostname in _LOOPBACK):
            raise ValueError(f"{entry['iss']}: jwks_url must be https")
    if keys is not None and not (isinstance(keys, dict) and isinstance(keys.get("keys"), list)):
        raise ValueError(f"{entry['iss']}: jwks must be an object with keys")
    if not isinstance(tenants, list) or not all(isinstance(tenant, str) for tenant in tenants):
        raise ValueError(f"{entry['iss']}: tenants must be a list of texts")
    return Client(entry["iss"], url, keys, frozenset(tenants))
