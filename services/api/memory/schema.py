"""The tables as queries see them. `migrations/` makes them; a test compares the two.

Everything that a patient or a model wrote is a blob, sealed or not (`crypto.py`), so that it may hold any text.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)


class Schema:
    """Made once by the store."""

    def __init__(self) -> None:
        metadata = MetaData()
        self.metadata = metadata
        self.sessions = Table(
            "sessions",
            metadata,
            Column("row", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
            Column("tenant", Text, nullable=False),
            Column("id", Text, nullable=False),
            Column("created", Double, nullable=False),
            Column("expires", Double),  # NULL: never
            Column("ttl_s", Double),
            Column("version", Integer, nullable=False),  # counts changes: whoever writes says what it has read
            Column("turns", Integer, nullable=False),  # begun so far: the number of the latest turn
            Column("metadata", LargeBinary, nullable=False),
            Column("system_prompt", LargeBinary),
            Column("key_id", Text),  # the key that wraps data_key; both NULL: not sealed
            Column("data_key", LargeBinary),
        )
        self.turns = Table(
            "turns",
            metadata,
            Column("session", BigInteger, ForeignKey("sessions.row", ondelete="CASCADE"), primary_key=True),
            Column("seq", Integer, primary_key=True),
            Column("status", Text, nullable=False),
            Column("owner", Text, nullable=False),  # the process that generates, or has generated, it
            Column("request_id", Text, nullable=False),
            Column("idempotency", Text),  # digest of the key
            Column("request_hash", LargeBinary),
            Column("messages", LargeBinary, nullable=False),
            Column("answer", LargeBinary),
            Column("reasoning", LargeBinary),
            Column("tool_calls", LargeBinary),
            Column("input_ids", LargeBinary),
            Column("reply_ids", LargeBinary),
            Column("format_digest", Text),
            Column("adapter", Text),
            Column("adapter_version", Text),
            Column("finish_reason", Text),
            Column("thinking_truncated", Boolean, nullable=False),
            Column("verdict", Text),
            Column("rules", Text),  # JSON list
            Column("policy", Text),
            Column("usage", Text),  # JSON object
            Column("created", Double, nullable=False),
            Column("finished", Double),
        )
        self.owners = Table(
            "owners",
            metadata,
            Column("id", Text, primary_key=True),
            Column("place", Text, nullable=False),  # machine and process namespace: where `pid` means something
            Column("pid", Integer, nullable=False),
            Column("born", Text, nullable=False),
            Column("seen", Double, nullable=False),  # by the database's clock
        )


# Columns of a turn that are sealed with its session's data key.
SEALED_TURN_COLUMNS = (
    "request_hash", "messages", "answer", "reasoning", "tool_calls", "input_ids", "reply_ids",
)  # fmt: skip
SEALED_SESSION_COLUMNS = ("metadata", "system_prompt")
