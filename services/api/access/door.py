"""Which key a route needs, and whether a request has brought it."""

from __future__ import annotations

from collections.abc import Sequence

from services.api.access.file import KeyStore
from services.api.access.keys import Caller
from services.api.access.limits import Limits, Ticket
from services.api.errors import InsufficientScope, InvalidApiKey
from services.api.memory.tenancy import ANONYMOUS

ANY_SCOPE = ""

# Longest first. A route that no prefix names is open: health, version, the page, the OpenAPI document.
_NEEDS = (
    ("/v1/chat/", "chat"),
    ("/v1/responses", "chat"),
    ("/v1/sessions", "sessions"),
    ("/v1/adapters", "adapters"),
    ("/cds-services", "cds"),
    ("/metrics", "metrics"),
    ("/v1/", ANY_SCOPE),
)
_ASK = "send a valid key as 'Authorization: Bearer KEY'; the server's operator hands them out"


def scope_of(path: str) -> str | None:
    """The scope that a path needs, `ANY_SCOPE` for a key of any scope, `None` when it is open."""
    return next((scope for prefix, scope in _NEEDS if path.startswith(prefix)), None)


class AccessDoor:
    """Lets requests in by key, scope and limit. Without keys everybody is let in, as `anonymous`."""

    def __init__(
        self,
        store: KeyStore,
        limits: Limits,
        *,
        metrics_open: bool = False,
        own_auth: Sequence[str] = (),
    ) -> None:
        """`own_auth`: prefixes of routes that check their callers by themselves (an EHR's signed tokens)."""
        self._store = store
        self._limits = limits
        self._anybody = Caller("anonymous", ANONYMOUS)
        self._open = (*own_auth, *(("/metrics",) if metrics_open else ()))

    def caller(self, path: str, authorization: str) -> Caller | None:
        """Who asks, or `None` on an open route. Raises `InvalidApiKey` and `InsufficientScope`."""
        needed = scope_of(path)
        if needed is None or (self._open and path.startswith(self._open)):
            return None
        if not self._store.asks:
            return self._anybody
        scheme, _, key = authorization.partition(" ")
        given = key.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
        found = self._store.index.find(given)
        if found is None:
            raise InvalidApiKey(_ASK)
        if isinstance(found, str):
            raise InvalidApiKey(f"this key is {found}: ask the server's operator for a new one")
        if needed and needed not in found.scopes:
            raise InsufficientScope(
                f"this key lacks the scope {needed!r}: ask the server's operator for a key that has it"
            )
        return found

    def enter(self, path: str, caller: Caller | None) -> Ticket | None:
        """A place within the caller's limits; `None` without any. Raises `RateLimited` and `ConcurrencyLimited`."""
        return None if caller is None or path.startswith("/metrics") else self._limits.enter(caller)
