"""Sessions, their turns, and the processes that own pending turns."""

from __future__ import annotations

from collections.abc import Sequence

VERSION = 1
NAME = "sessions and turns"


def statements(dialect: str) -> Sequence[str]:
    """Row numbers are never used twice: a late writer must not meet another session under the number that it knew."""
    row = {
        "sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "postgresql": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    }
    blob = {"sqlite": "BLOB", "postgresql": "BYTEA"}[dialect]
    return (
        f"""
        CREATE TABLE sessions (
            row {row[dialect]},
            tenant TEXT NOT NULL,
            id TEXT NOT NULL,
            created DOUBLE PRECISION NOT NULL,
            expires DOUBLE PRECISION,
            ttl_s DOUBLE PRECISION,
            version INTEGER NOT NULL,
            turns INTEGER NOT NULL,
            metadata {blob} NOT NULL,
            system_prompt {blob},
            key_id TEXT,
            data_key {blob},
            UNIQUE (tenant, id)
        )
        """,
        "CREATE INDEX sessions_in_order ON sessions (tenant, created, id)",
        "CREATE INDEX sessions_by_expiry ON sessions (expires) WHERE expires IS NOT NULL",
        "CREATE INDEX sessions_by_key ON sessions (key_id)",
        f"""
        CREATE TABLE turns (
            session BIGINT NOT NULL REFERENCES sessions (row) ON DELETE CASCADE,
            seq INTEGER NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('pending', 'done', 'blocked', 'aborted')),
            owner TEXT NOT NULL,
            request_id TEXT NOT NULL,
            idempotency TEXT,
            request_hash {blob},
            messages {blob} NOT NULL,
            answer {blob},
            reasoning {blob},
            tool_calls {blob},
            input_ids {blob},
            reply_ids {blob},
            format_digest TEXT,
            adapter TEXT,
            adapter_version TEXT,
            finish_reason TEXT,
            thinking_truncated BOOLEAN NOT NULL,
            verdict TEXT,
            rules TEXT,
            policy TEXT,
            usage TEXT,
            created DOUBLE PRECISION NOT NULL,
            finished DOUBLE PRECISION,
            PRIMARY KEY (session, seq)
        )
        """,
        "CREATE UNIQUE INDEX turns_pending ON turns (session) WHERE status = 'pending'",
        """
        CREATE UNIQUE INDEX turns_by_key ON turns (session, idempotency)
            WHERE idempotency IS NOT NULL AND status <> 'aborted'
        """,
        """
        CREATE TABLE owners (
            id TEXT PRIMARY KEY,
            place TEXT NOT NULL,
            pid INTEGER NOT NULL,
            born TEXT NOT NULL,
            seen DOUBLE PRECISION NOT NULL
        )
        """,
    )
