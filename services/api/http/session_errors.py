"""What the memory refuses, as what clients are told: the same message and code, with a status."""

from __future__ import annotations

from services.api import errors
from services.api.memory.errors import SessionError

_KINDS: tuple[type[errors.ApiError], ...] = (
    errors.InvalidSessionId,
    errors.InvalidMetadata,
    errors.MetadataTooLarge,
    errors.InvalidTtl,
    errors.InvalidCursor,
    errors.InvalidIdempotencyKey,
    errors.NothingNew,
    errors.SessionNotFound,
    errors.SessionExists,
    errors.SessionBusy,
    errors.HistoryConflict,
    errors.IdempotencyConflict,
    errors.TurnLost,
    errors.MemoryUnavailable,
)
_BY_CODE = {kind.code: kind for kind in _KINDS}


def to_api_error(error: SessionError, param: str | None = None) -> errors.ApiError:
    """The client's error; what only the operator can mend (a missing key, an altered row) says no more than that."""
    kind = _BY_CODE.get(error.code)
    if kind is None:
        return errors.MemoryUnreadable(
            "this session cannot be read: it was sealed with a key that the server does not have, or was altered; "
            "the server's operator finds the cause in the log"
        )
    known = kind(error.message, param=param)
    if error.retry_after_s is not None:
        known.retry_after_s = error.retry_after_s
    return known
