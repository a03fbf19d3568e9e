"""What a database driver raises, as `StoreUnavailable`: four reasons instead of a hundred codes."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.api.memory.errors import Reason, StoreUnavailable

_MESSAGES: dict[Reason, str] = {
    "locked": "the memory database is busy: try again in a few seconds; if it stays so, another program holds its file",
    "full": "the memory database has no room left: free disk space where it is stored; what was acknowledged is kept",
    "gone": "the memory database does not answer: check that it runs and can be reached; it is tried again by itself",
    "unreadable": "the memory database cannot be read or written: check its file, its permissions and its disk",
}

# SQLite's primary result codes, the low byte of the extended ones.
_SQLITE: dict[int, Reason] = {
    5: "locked", 6: "locked", 13: "full", 8: "unreadable", 10: "unreadable", 11: "unreadable", 14: "unreadable",
    23: "unreadable", 26: "unreadable",
}  # fmt: skip

# PostgreSQL's codes: whole ones before their class, its first two characters.
_POSTGRES: dict[str, Reason] = {
    "53100": "full", "53": "locked", "08": "gone", "57P": "gone", "57014": "locked", "55P03": "locked", "40001": "locked",
    "40P01": "locked", "58": "unreadable", "XX": "unreadable", "25006": "unreadable", "28": "gone", "3D000": "gone",
}  # fmt: skip


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raises `StoreUnavailable` for a database that cannot be used now; other errors are ours and pass."""
    try:
        yield
    except (DBAPIError, PoolTimeout, OSError, sqlite3.Error) as error:
        reason = reason_of(error)
        if reason is None:
            raise
        raise StoreUnavailable(_MESSAGES[reason], reason) from error


def reason_of(error: BaseException) -> Reason | None:
    """Why the database cannot be used; `None` when the fault is not the database's state."""
    if isinstance(error, PoolTimeout):
        return "locked"
    if isinstance(error, OSError):  # asyncio's TimeoutError is one
        is_file = isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError | PermissionError)
        return "full" if error.errno == errno.ENOSPC else "unreadable" if is_file else "gone"
    cause = error.orig if isinstance(error, DBAPIError) else error
    while cause is not None:
        code = getattr(cause, "sqlite_errorcode", None)
        if isinstance(code, int):
            return _SQLITE.get(code & 0xFF)
        state = getattr(cause, "sqlstate", None)
        if isinstance(state, str):
            known = (state[:n] for n in (5, 3, 2))
            return next((_POSTGRES[part] for part in known if part in _POSTGRES), None)
        if isinstance(cause, OSError):
            return reason_of(cause)
        cause = cause.__cause__
    lost = isinstance(error, DBAPIError) and (error.connection_invalidated or "connection" in str(error.orig).lower())
    return "gone" if lost else None
