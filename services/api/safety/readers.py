"""Reads conversations in processes beside the server's own, so that a long question keeps nobody else waiting for tokens.

What comes back is the `Case` that `Judge.open` would have made, by the same code under the same policy. Whatever goes wrong
with a process, the conversation is read here instead: a reader makes the guard faster and never decides whether it looks.
"""

from __future__ import annotations

import asyncio
import io
import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from services.api.safety.case import Case
from services.api.safety.judge import Judge
from services.api.safety.policy import Policy, PolicyError, read_policy
from services.api.safety.rules import default_rules
from services.api.safety.terms import Term

log = logging.getLogger(__name__)

SHORT = 400  # characters that are read here at once: they take less time than the way there and back
LIMIT_S = 5.0  # a reader that takes longer is stuck; the conversation is read here


class Readers:
    """Processes that read under the policy of one folder. With no `count` everything is read here."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    async def run(self) -> None:
        """Keeps the processes until it is cancelled; they read the policy while the engine loads."""
        if not self._count:
            return
        self._pool = await asyncio.to_thread(self._new_pool)
        try:
            await asyncio.Event().wait()
        finally:
            pool, self._pool = self._pool, None
            pool.shutdown(wait=False, cancel_futures=True)

    async def open(self, judge: Judge, messages: Sequence[tuple[str, str]], system_prompt: str | None) -> Case:
        """`judge.open`, beside the event loop when that pays."""
        pool = self._pool
        if pool is None or sum(len(text) for _, text in messages) < SHORT:
            return judge.open(messages, system_prompt)
        try:
            work = asyncio.get_running_loop().run_in_executor(pool, _read, judge.label, list(messages), system_prompt)
            read = await asyncio.wait_for(work, LIMIT_S)
        except (BrokenProcessPool, TimeoutError) as error:
            log.error("a safety reader failed: %s", type(error).__name__)
            self._replace(pool)
            read = None
        except Exception as error:  # noqa: BLE001 - read here, where a failure blocks
            log.error("a safety reader failed: %s", type(error).__name__)
            read = None
        return judge.open(messages, system_prompt) if read is None else _unpacked(read, judge.policy)

    def _replace(self, broken: ProcessPoolExecutor) -> None:
        """Once for each pool, however many requests saw it break."""
        if self._pool is broken:
            broken.shutdown(wait=False, cancel_futures=True)
            self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        # Spawned: a fork of a process with threads and a GPU inherits locks that nobody will open.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self._count, context, _begin, (str(self._folder),))
        for _ in range(self._count):
            pool.submit(os.getpid)  # processes are started by the first work
        return pool


# In the processes

_judges: dict[str, Judge] = {}  # by label, the latest two: a policy may change while old requests are read
_folder = Path()


def _begin(folder: str) -> None:
    global _folder
    _folder = Path(folder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _load()


def _end_with_parent() -> None:
    """A killed server leaves no reader behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(0)


def _load() -> Judge | None:
    try:
        judge = Judge(read_policy(_folder), default_rules())
    except (PolicyError, OSError):
        return None  # the server has refused it too, and goes on with the one that we have
    _judges[judge.label] = judge
    while len(_judges) > 2:
        del _judges[next(iter(_judges))]
    return judge


def _read(label: str, messages: list[tuple[str, str]], system_prompt: str | None) -> bytes | None:
    """A packed case; `None` when this process has not that policy."""
    judge = _judges.get(label)
    if judge is None:
        judge = _load()
        if judge is None or judge.label != label:
            return None
    return _packed(judge.open(messages, system_prompt))


# The way back: policy and terms are named, not carried


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Policy):
            return "policy"
        return value.id if isinstance(value, Term) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, policy: Policy) -> None:
        super().__init__(file)
        self._policy = policy
        self._terms = policy.terms

    def persistent_load(self, name: Any) -> Any:
        return self._policy if name == "policy" else self._terms[name]


def _packed(case: Case) -> bytes:
    out = io.BytesIO()
    _Pickler(out, pickle.HIGHEST_PROTOCOL).dump(case)
    return out.getvalue()


def _unpacked(read: bytes, policy: Policy) -> Case:
    case = _Unpickler(io.BytesIO(read), policy).load()
    assert isinstance(case, Case)
    return case
