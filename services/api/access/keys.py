"""API keys as the keys file has them: never the key, only its keyed hash.

A key is 256 random bits, so one HMAC-SHA-256 under the file's random salt is enough: there is no list of likely keys that a slow
hash (bcrypt, scrypt) would have to hold up, and a slow one would cost every request. The salt is one for the file, so that a key
is found by its hash in one look whatever the number of keys.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.api.memory.tenancy import tenant_of

KeyScope = Literal["chat", "sessions", "adapters", "metrics", "cds"]
SCOPES: Final[frozenset[str]] = frozenset(("chat", "sessions", "adapters", "metrics", "cds"))
PREFIX: Final = "mt_"
SHORTEST_ADOPTED: Final = 20  # characters; what people make up is shorter than what is drawn

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ \-]{0,63}$")]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class KeysFileError(ValueError):
    """The keys file cannot be used; the message says why and what to do, and quotes nothing of the file."""


class KeyEntry(BaseModel):
    """A key in the file. Times are UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-z]{1,32}$")] = Field(description="what logs and audit call it")
    name: Name
    tenant: Name
    owner: str = Field(pattern=r"^[0-9a-f]{32}$", description="whose sessions it opens")
    hash: Hex
    scopes: tuple[KeyScope, ...]
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None
    requests_per_minute: int | None = Field(None, ge=0, description="None: the server's setting; 0: no limit")
    concurrency: int | None = Field(None, ge=0, description="None: the server's setting; 0: no limit")

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


class KeysFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    salt: Hex
    keys: tuple[KeyEntry, ...] = ()

    @model_validator(mode="after")
    def _each_key_is_there_once(self) -> KeysFile:
        for what, values in (("id", [k.id for k in self.keys]), ("hash", [k.hash for k in self.keys])):
            if len(set(values)) != len(values):
                raise ValueError(f"two keys have the same {what}")
        if any(t is not None and t.tzinfo is None for k in self.keys for t in (k.created, k.expires, k.revoked)):
            raise ValueError("a time lacks its time zone")
        return self

    @classmethod
    def new(cls) -> KeysFile:
        return cls(salt=secrets.token_hex(32))

    @classmethod
    def parse(cls, content: bytes) -> KeysFile:
        """Raises `KeysFileError`."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(str(part) for part in problem["loc"]) or "the file"
            raise KeysFileError(f"{place}: {problem['msg']}") from None

    def text(self) -> str:
        return json.dumps(self.model_dump(mode="json", exclude_none=True), indent=1, ensure_ascii=False) + "\n"

    def hash_of(self, key: str) -> str:
        return hash_of(self.salt, key.encode("utf-8", "surrogatepass"))

    def owner_of(self, tenant: str) -> str:
        """All keys of one tenant open the same sessions."""
        known = [entry.owner for entry in self.keys if entry.tenant == tenant]
        return known[0] if known else named_owner(tenant)


def hash_of(salt: str, key: bytes) -> str:
    return hmac.new(bytes.fromhex(salt), key, hashlib.sha256).hexdigest()


def named_owner(tenant: str) -> str:
    """The owner of a named tenant's sessions, the same on every replica; no key's own owner can equal it."""
    return hmac.new(b"medthink named tenant 1", tenant.encode(), hashlib.sha256).hexdigest()[:32]


def new_key() -> str:
    """43 characters of URL-safe base64 behind a prefix that secret scanners and people recognise."""
    return PREFIX + secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request comes from. `id` goes into logs and audit; `owner` into the memory."""

    id: str
    owner: str
    scopes: frozenset[str] = SCOPES
    requests_per_minute: int | None = None
    concurrency: int | None = None


class KeyIndex:
    """Finds callers by key. Immutable: a changed file makes a new index."""

    def __init__(self, file: KeysFile, plain: Iterable[str] = ()) -> None:
        """`plain`: keys of the setting, with all scopes. One that the file has too is the file's."""
        self._salt = file.salt
        self._entries: dict[str, KeyEntry] = {entry.hash: entry for entry in file.keys}
        self._plain: dict[str, Caller] = {}
        for key in plain:
            owner = tenant_of(key)
            self._plain[file.hash_of(key)] = Caller(f"setting-{owner[:8]}", owner)

    def find(self, key: bytes, now: datetime | None = None) -> Caller | str | None:
        """The caller; or why a key that was one no longer opens ("expired", "revoked"); or `None`.

        The time that this takes tells nothing: what is looked up is the key's hash under a salt that nobody outside knows,
        so how much of it agrees with a stored one is chance. The last word is a comparison in constant time all the same.
        """
        digest = hash_of(self._salt, key)
        entry, caller = self._entries.get(digest), self._plain.get(digest)
        if not hmac.compare_digest(digest, entry.hash if entry else digest):
            return None
        if entry is None:
            return caller
        state = entry.state(now or datetime.now(UTC))
        if state != "active":
            return state
        return Caller(entry.id, entry.owner, frozenset(entry.scopes), entry.requests_per_minute, entry.concurrency)


def describe(entry: KeyEntry, now: datetime) -> dict[str, Any]:
    """A key for people and machines: everything but its hash."""
    return entry.model_dump(mode="json", exclude={"hash"}) | {"state": entry.state(now)}
