"""What the memory refuses, and why. `http` gives each its status; `code` is stable, the message names the next step.

SessionError
|-- BadSessionId           a name that no session can have
|-- BadMetadata            no JSON object
|   `-- MetadataTooLarge
|-- BadTtl
|-- BadCursor              not one that a list has given
|-- SessionNotFound        unknown, expired, erased, or somebody else's: nobody can tell which
|-- SessionExists          created twice under one name
|-- SessionBusy            another turn of it runs; has `retry_after_s`
|   `-- SessionChanged     another replica was quicker: load it again
|-- TurnLost               another replica took this turn's place while it was thought dead
|-- HistoryConflict        what the client sent contradicts what is stored
|-- NothingNew             what the client sent ends with an answer that is stored already
|-- IdempotencyConflict    the key was used for another request
|-- BadIdempotencyKey
|-- StoreUnavailable       locked, full, gone or unreadable; has `reason` and `retry_after_s`
|-- DatabaseUrlError       at start: a URL that names no database that we know
|-- SchemaTooNew           at start: the database was written by a newer version
|-- KeyMissing             at start: sessions are sealed with a key that was not given
|-- BadKey                 at start: not 32 bytes in base64
`-- SealBroken             a row was altered, moved, or sealed by another key

No message ever holds what a patient or a model wrote.
"""

from __future__ import annotations

from typing import Literal

Reason = Literal["locked", "full", "gone", "unreadable"]


class SessionError(Exception):
    """`message` is for people, `code` for programs."""

    code = "session_error"
    retry_after_s: int | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadSessionId(SessionError):
    code = "invalid_session_id"


class BadMetadata(SessionError):
    code = "invalid_metadata"


class MetadataTooLarge(BadMetadata):
    code = "metadata_too_large"


class BadTtl(SessionError):
    code = "invalid_ttl"


class BadCursor(SessionError):
    code = "invalid_cursor"


class SessionNotFound(SessionError):
    code = "session_not_found"

    def __init__(
        self,
        message: str = "there is no such session: it was never made, has expired, or was deleted; begin a new one",
    ) -> None:
        super().__init__(message)


class SessionExists(SessionError):
    code = "session_exists"


class SessionBusy(SessionError):
    code = "session_busy"
    retry_after_s = 2

    def __init__(
        self,
        message: str = "another turn of this session is running: wait for its answer, then send this one again",
    ) -> None:
        super().__init__(message)


class SessionChanged(SessionBusy):
    code = "session_busy"
    retry_after_s = 1

    def __init__(
        self,
        message: str = "another replica went on with this session in this moment: send the message again",
    ) -> None:
        super().__init__(message)


class TurnLost(SessionError):
    code = "turn_lost"


class HistoryConflict(SessionError):
    code = "history_conflict"


class NothingNew(SessionError):
    code = "nothing_new"


class IdempotencyConflict(SessionError):
    code = "idempotency_conflict"


class BadIdempotencyKey(SessionError):
    code = "invalid_idempotency_key"


class StoreUnavailable(SessionError):
    """The database cannot be used now; the next call tries again by itself."""

    code = "memory_unavailable"
    retry_after_s = 5

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class DatabaseUrlError(SessionError):
    code = "invalid_database_url"


class SchemaTooNew(SessionError):
    code = "schema_too_new"


class KeyMissing(SessionError):
    code = "memory_key_missing"


class BadKey(SessionError):
    code = "invalid_memory_key"


class SealBroken(SessionError):
    code = "memory_unreadable"
