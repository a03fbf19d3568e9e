"""Encryption at rest: each session has a random data key, wrapped by a key that only the environment knows.

AES-256-GCM everywhere. The additional data of each value names its tenant, session, column and turn, so that a value
that was moved to another row does not open. What is not sealed: session ids, times, statuses, verdicts, token counts.

Without keys everything is stored as it is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.api.memory.errors import BadKey, KeyMissing, SealBroken

KEY_BYTES = 32
_NONCE_BYTES = 12
_DATA_KEY = "data key"


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key as it is stored. `key_id` names the key that wrapped it and tells nothing about it."""

    key_id: str
    sealed: bytes


class Sealer:
    """Seals and opens the values of one session."""

    def __init__(self, tenant: str, session: str, data_key: bytes | None) -> None:
        """Without a data key values pass as they are."""
        self._cipher = AESGCM(data_key) if data_key is not None else None
        self._name = f"{tenant}\0{session}"

    @property
    def encrypts(self) -> bool:
        return self._cipher is not None

    def seal(self, column: str, data: bytes, seq: int = 0) -> bytes:
        """`seq`: the turn's number, 0 for the session's own columns."""
        if self._cipher is None:
            return data
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, self._context(column, seq))

    def open(self, column: str, sealed: bytes, seq: int = 0) -> bytes:
        """Inverts `seal`; raises `SealBroken`."""
        if self._cipher is None:
            return sealed
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], self._context(column, seq))
        except (InvalidTag, ValueError) as error:
            raise SealBroken(
                "a stored value does not open with its session's key: it was altered or moved outside this service; "
                "restore the database from a backup, or delete the session"
            ) from error

    def _context(self, column: str, seq: int) -> bytes:
        return f"{self._name}\0{column}\0{seq}".encode()


class KeyRing:
    """The key-encryption keys: the first one wraps, all of them unwrap. Empty: no encryption."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        """Raises `BadKey` for a key that has not 32 bytes."""
        if any(len(key) != KEY_BYTES for key in keys):
            raise BadKey(_HOW_TO_MAKE_ONE)
        self._keys = {_key_id(key): AESGCM(key) for key in keys}
        self._first = _key_id(keys[0]) if keys else None

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """Keys in base64, separated by commas; raises `BadKey`."""
        return cls([_decode(part.strip()) for part in text.split(",") if part.strip()])

    @property
    def first_id(self) -> str | None:
        """The key that new sessions are sealed under."""
        return self._first

    def require(self, key_ids: Sequence[str]) -> None:
        """Raises `KeyMissing` unless all the keys that a database needs are here."""
        missing = sorted(set(key_ids) - set(self._keys))
        if missing:
            have = ", ".join(self._keys) or "none"
            raise KeyMissing(
                f"the database has sessions sealed under key {', '.join(missing)}, and the keys given are: {have}. Add "
                "the old key behind the new one until `python -m services.api.memory rotate` has run"
            )

    def new(self, tenant: str, session: str) -> tuple[Sealer, WrappedKey | None]:
        """A fresh data key for a session, ready to use and wrapped; without keys a sealer that seals nothing."""
        if self._first is None:
            return Sealer(tenant, session, None), None
        data_key = AESGCM.generate_key(KEY_BYTES * 8)
        return Sealer(tenant, session, data_key), self._wrap(tenant, session, data_key)

    def open(self, tenant: str, session: str, wrapped: WrappedKey | None) -> Sealer:
        """The sealer of a stored session; raises `KeyMissing` and `SealBroken`."""
        return Sealer(tenant, session, None if wrapped is None else self._unwrap(tenant, session, wrapped))

    def rewrap(self, tenant: str, session: str, wrapped: WrappedKey) -> WrappedKey:
        """The same data key under the first key; nothing else of the session need be touched."""
        return self._wrap(tenant, session, self._unwrap(tenant, session, wrapped))

    def _wrap(self, tenant: str, session: str, data_key: bytes) -> WrappedKey:
        assert self._first is not None
        nonce = os.urandom(_NONCE_BYTES)
        context = f"{tenant}\0{session}\0{_DATA_KEY}".encode()
        return WrappedKey(self._first, nonce + self._keys[self._first].encrypt(nonce, data_key, context))

    def _unwrap(self, tenant: str, session: str, wrapped: WrappedKey) -> bytes:
        self.require([wrapped.key_id])
        context = f"{tenant}\0{session}\0{_DATA_KEY}".encode()
        try:
            return self._keys[wrapped.key_id].decrypt(
                wrapped.sealed[:_NONCE_BYTES], wrapped.sealed[_NONCE_BYTES:], context
            )
        except (InvalidTag, ValueError) as error:
            raise SealBroken(
                f"a data key does not open with key {wrapped.key_id}: the row was altered or moved outside this service"
            ) from error


_HOW_TO_MAKE_ONE = (
    "a memory key is 32 random bytes in base64: make one with "
    "python3 -c 'import base64, os; print(base64.b64encode(os.urandom(32)).decode())'"
)


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"medthink memory key id 1" + key).hexdigest()[:16]


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        raise BadKey(_HOW_TO_MAKE_ONE) from None
