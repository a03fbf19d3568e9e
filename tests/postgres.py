"""A real PostgreSQL for tests, from the system's package: in a folder of its own, durable as in service, on a Unix socket."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

USERS = ("postgres", "nobody")  # PostgreSQL refuses to run as root
INSTALL_LIMIT_S = 240


class NoPostgres(Exception):
    """Why there is none here; the message is a reason to skip."""


@dataclass
class Postgres:
    """A running server. Its data stays from `stop` to `start`, as over a restart of the machine."""

    binaries: Path
    folder: Path
    user: str | None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def url(self, name: str) -> str:
        return f"postgresql://medthink@/{name}?host={self.folder}"

    def start(self) -> None:
        options = f"-k {self.folder} -h '' -c max_connections=150 -c shared_buffers=32MB"
        self._run(
            "pg_ctl", "-D", str(self.data), "-l", str(self.folder / "log"), "-w", "-t", "60", "-o", options, "start"
        )

    def stop(self, mode: str = "immediate") -> None:
        """`immediate` is a crash: nothing is written back."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", mode, "stop")

    def sql(self, statement: str, database: str = "postgres") -> str:
        return self._run("psql", "-h", str(self.folder), "-U", "medthink", "-X", "-At", "-c", statement, database)

    @contextlib.contextmanager
    def fresh(self) -> Iterator[str]:
        """URL of an empty database, dropped afterwards."""
        name = f"t{uuid.uuid4().hex}"
        self.sql(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            self.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [*_as_user(self.user), str(self.binaries / program), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, cwd=self.folder,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout[-2000:]}")
        return done.stdout.strip()


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A server for as long as the block runs; raises `NoPostgres`."""
    binaries = find_binaries()
    folder = Path(tempfile.mkdtemp(prefix="medthink-pg-", dir="/tmp"))  # a socket's path must be short
    try:
        user = _user(folder)
        server = Postgres(binaries, folder, user)
        try:
            server._run(
                "initdb", "-D", str(server.data), "-U", "medthink", "-A", "trust", "-E", "UTF8", "--locale", "C"
            )
            server.start()
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            raise NoPostgres(f"PostgreSQL in {binaries} does not start: {str(error)[-500:]}") from error
        try:
            yield server
        finally:
            with contextlib.suppress(RuntimeError):
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_binaries() -> Path:
    """The newest PostgreSQL of this machine, installed first where we may; raises `NoPostgres`."""
    found = _installed()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        _install()
        found = _installed()
    if found is None:
        raise NoPostgres(
            "PostgreSQL is not here and could not be installed: run `apt-get install postgresql` as root, then these tests "
            "run as well"
        )
    return found


def _installed() -> Path | None:
    folders = glob.glob("/usr/lib/postgresql/*/bin") + glob.glob("/usr/pgsql-*/bin")
    named = shutil.which("initdb")
    folders += [str(Path(named).resolve().parent)] if named else []
    whole = [Path(f) for f in folders if all((Path(f) / p).exists() for p in ("initdb", "pg_ctl", "postgres", "psql"))]
    return max(whole, key=lambda f: [int(p) for p in f.parent.name.split(".") if p.isdigit()], default=None)


def _install() -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "postgresql"]):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, env=environment, timeout=INSTALL_LIMIT_S)


def _user(folder: Path) -> str | None:
    """Who runs it: ourselves, unless we are root; then the folder becomes theirs."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    for name in USERS:
        if name in known and shutil.which("setpriv"):
            os.chown(folder, known[name].pw_uid, known[name].pw_gid)
            return name
    raise NoPostgres("PostgreSQL does not run as root, and here is no setpriv or no other user to run it as")


def _as_user(user: str | None) -> list[str]:
    if user is None:
        return []
    entry = pwd.getpwnam(user)
    return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups", "--"]
