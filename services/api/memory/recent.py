"""Conversations of this process's last turns, so that the next turn need not read them again.

What is here may be old: another replica may have gone on meanwhile. Nothing trusts it: `begin_turn` takes a session's next number
only at the version that was read, and whoever is refused reads the database.
"""

from __future__ import annotations

from collections import OrderedDict

from services.api.memory.records import History

MOST = 256  # sessions


class RecentHistories:
    """The latest histories by (tenant, session id); the one unused for longest goes first."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._histories: OrderedDict[tuple[str, str], History] = OrderedDict()

    def __len__(self) -> int:
        return len(self._histories)

    def take(self, tenant: str, session_id: str) -> History | None:
        """Gives one away: who goes on with it puts the next one back."""
        return self._histories.pop((tenant, session_id), None)

    def put(self, history: History) -> None:
        session = history.session
        self._histories[session.tenant, session.id] = history
        if len(self._histories) > self._most:
            self._histories.popitem(last=False)

    def forget_expired(self, now: float) -> None:
        for key, history in list(self._histories.items()):
            if history.session.expires is not None and history.session.expires <= now:
                del self._histories[key]
