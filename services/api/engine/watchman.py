"""Ends the engine's processes when the server is gone, however it went: after `kill -9` they would keep the GPU's memory.

The watchman is a small process that reads what to watch and then waits for its input to end, which the kernel sees to when the
server dies. Started after the engine: a child that was forked later would hold the other end of its input open.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, as far as Linux tells; empty elsewhere."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.glob("[0-9]*"):
        if (fields := _fields(int(entry.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = list[int](), [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def born(pid: int) -> str | None:
    """A process's start in the kernel's ticks, which tells it from a later one of the same number; `None`: there is none."""
    fields = _fields(pid)
    return None if fields is None else fields[19]


def _fields(pid: int) -> list[str] | None:
    """What /proc says of a process from its state on, which is field 3 of proc(5): the name before it may hold anything."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


class Watchman:
    """Watches this process on behalf of some of its descendants. `dismiss` ends what is left of them."""

    def __init__(self, pids: Iterable[int]) -> None:
        lines = [f"{pid} {start}" for pid in pids if (start := born(pid)) is not None]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C on the terminal is for the server, which then dismisses it
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(("\n".join(lines) + "\n").encode())
            self._process.stdin.flush()

    @property
    def pid(self) -> int:
        return self._process.pid

    def dismiss(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(timeout=10)


def main() -> None:
    """Reads `PID START` lines until the input ends, then ends those processes."""
    for line in sys.stdin.read().splitlines():
        pid, _, start = line.partition(" ")
        if pid and born(int(pid)) == start:
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)


if __name__ == "__main__":
    main()
