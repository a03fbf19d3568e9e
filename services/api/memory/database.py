"""Connections to SQLite or PostgreSQL: how they are opened, who may write, and what makes a commit durable."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.api.memory.errors import DatabaseUrlError
from services.api.memory.faults import translated

log = logging.getLogger(__name__)

_BARE = "medthink_bare"
READERS = 4  # SQLite connections that read beside the one that writes


class Database:
    """One SQLite file, or one PostgreSQL database. Nothing is opened before `open`."""

    def __init__(self, url: str, *, wait_s: float = 5.0, connections: int = 16) -> None:
        """`url`: `sqlite:///FILE`, a plain file name, or `postgresql://USER:PASSWORD@HOST/NAME`.

        `wait_s`: how long a query waits for a lock or a free connection. `connections`: to PostgreSQL, at most twice as
        many under load. Raises `DatabaseUrlError`.
        """
        self.url = read_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._wait_s = wait_s
        self._connections = connections
        self._reads: AsyncEngine | None = None
        self._writes: AsyncEngine | None = None

    @property
    def file(self) -> Path | None:
        """SQLite's file."""
        return Path(self.url.database or "") if self.is_sqlite else None

    async def open(self) -> None:
        """Makes the engines; connections are made when they are needed."""
        if self.file is not None:
            with translated():
                await asyncio.to_thread(_prepare_file, self.file, self._wait_s)
            self._open_sqlite()
        else:
            self._open_postgres()

    async def close(self) -> None:
        for engine in {self._writes, self._reads}:
            if engine is not None:
                await engine.dispose()
        self._reads = self._writes = None

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection without a transaction: each query sees what is committed. Raises `StoreUnavailable`."""
        assert self._reads is not None, "the database is not open"
        with translated():
            async with self._reads.connect() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction; what it wrote is durable when the block has ended. Raises `StoreUnavailable`."""
        assert self._writes is not None, "the database is not open"
        with translated():
            async with self._writes.begin() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def bare(self) -> AsyncIterator[AsyncConnection]:
        """The writer's connection without a transaction, for VACUUM and checkpoints. Raises `StoreUnavailable`."""
        assert self._writes is not None, "the database is not open"
        with translated():
            async with self._writes.connect() as connection:
                if self.is_sqlite:
                    yield await connection.execution_options(**{_BARE: True})
                else:
                    yield await connection.execution_options(isolation_level="AUTOCOMMIT")

    def _open_sqlite(self) -> None:
        options: dict[str, Any] = {
            "hide_parameters": True,
            "pool_timeout": self._wait_s,
            "max_overflow": 0,
            "connect_args": {"timeout": self._wait_s},
        }
        self._writes = create_async_engine(self.url, pool_size=1, **options)
        self._reads = create_async_engine(self.url, pool_size=READERS, isolation_level="AUTOCOMMIT", **options)
        event.listen(self._writes.sync_engine, "connect", _prepare_sqlite_writer)
        event.listen(self._writes.sync_engine, "begin", _begin_immediate)
        event.listen(self._reads.sync_engine, "connect", _prepare_sqlite_reader)

    def _open_postgres(self) -> None:
        self._writes = create_async_engine(
            self.url,
            hide_parameters=True,
            pool_size=self._connections,
            max_overflow=self._connections,
            pool_timeout=self._wait_s,
            pool_pre_ping=True,  # a connection that died while it lay in the pool is replaced unseen
            connect_args={
                "timeout": self._wait_s,
                "command_timeout": self._wait_s * 4,
                "server_settings": {"application_name": "medthink", "lock_timeout": str(int(self._wait_s * 1000))},
            },
        )
        self._reads = self._writes.execution_options(isolation_level="AUTOCOMMIT")
        event.listen(self._writes.sync_engine, "connect", _prepare_postgres)

    async def warn_of_lost_durability(self) -> None:
        """One log line when PostgreSQL was told not to wait for its disk."""
        if self.is_sqlite:
            return
        async with self.read() as connection:
            if (await connection.execute(text("SHOW fsync"))).scalar() == "off":
                log.warning("PostgreSQL runs with fsync=off: turns can be lost when its machine fails")


def read_url(given: str) -> URL:
    """The URL with our drivers; raises `DatabaseUrlError`, which never repeats a password."""
    try:
        url = make_url(given if "://" in given else f"sqlite:///{given}")
    except (ArgumentError, ValueError) as error:
        raise DatabaseUrlError(_KNOWN) from error
    backend = url.get_backend_name() if url.drivername else ""
    if backend in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+asyncpg")
    if backend == "sqlite":
        if url.database in (None, "", ":memory:") or str(url.database).startswith("file:"):
            raise DatabaseUrlError("sessions need an SQLite file: name one as sqlite:///FILE")
        return url.set(drivername="sqlite+aiosqlite")
    raise DatabaseUrlError(_KNOWN)


_KNOWN = "the memory database is sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"


def _prepare_file(file: Path, wait_s: float) -> None:
    """Makes the file if it is new, and puts it into WAL mode, in which it stays.

    Raises `sqlite3.Error` and `OSError`. SQLite does not wait for its lock while it changes the mode: of processes that
    start together all but one are told that it is locked, so they try again.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # Patients' words: for this user alone. SQLite gives its WAL the same rights.
    os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    until = time.monotonic() + wait_s
    while True:
        try:
            with contextlib.closing(sqlite3.connect(file, timeout=wait_s)) as connection:
                connection.execute("PRAGMA journal_mode=WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            if time.monotonic() > until:
                raise
        time.sleep(0.02)


def _begin_immediate(connection: Any) -> None:
    """Takes the write lock before anything is read: no transaction has to be given up half-way."""
    if not connection.get_execution_options().get(_BARE):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _prepare_sqlite_writer(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    _pragmas(connection, "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON")


def _prepare_sqlite_reader(connection: Any, record: Any) -> None:
    _pragmas(connection, "query_only=ON")


def _pragmas(connection: Any, *settings: str) -> None:
    cursor = connection.cursor()
    try:
        for setting in settings:
            cursor.execute(f"PRAGMA {setting}")
            cursor.fetchall()
    finally:
        cursor.close()


def _prepare_postgres(connection: Any, record: Any) -> None:
    """A role may have it off; replicated settings (remote_apply and the like) are left as they are."""
    cursor = connection.cursor()
    try:
        cursor.execute("SHOW synchronous_commit")
        if cursor.fetchone()[0] == "off":
            cursor.execute("SET SESSION synchronous_commit = on")
            connection.commit()
    finally:
        cursor.close()
