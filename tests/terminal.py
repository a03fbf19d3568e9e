"""A program in a pseudo-terminal: what it shows, and what a person types."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.fakes import ROOT

CTRL_C = "\x03"
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x01\x02\x07]")
# Standard input becomes the controlling terminal, so that Ctrl-C is an interrupt.
_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Terminal:
    """`with Terminal(["-m", "services.api.chat"]) as terminal`: Python with these arguments. `raw` is all that it wrote."""

    def __init__(self, arguments: Sequence[str], **environment: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", **environment},
        )
        os.close(slave)
        self._bytes = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def raw(self) -> str:
        return self._bytes.decode(errors="replace")

    @property
    def shown(self) -> str:
        return _COLOURS.sub("", self.raw).replace("\r", "")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str, times: int = 1, limit_s: float = 60.0) -> None:
        """Until `text` was shown this often."""
        deadline = time.monotonic() + limit_s
        while self.shown.count(text) < times:
            assert time.monotonic() < deadline, f"{text!r} is not there: {self.shown[-1500:]}"
            self._read(0.1)

    def end(self, press: str = "", limit_s: float = 30.0) -> int:
        """The exit code of a program that is about to end. `press` is typed each second until it does, as people do."""
        deadline, pressed = time.monotonic() + limit_s, 0.0
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on: {self.shown[-1500:]}"
            if press and time.monotonic() - pressed > 1:
                self.type(press)
                pressed = time.monotonic()
            self._read(0.1)
        self._read(0.1)
        return self.process.returncode

    def _read(self, wait_s: float) -> None:
        if select.select([self._master], [], [], wait_s)[0]:
            with contextlib.suppress(OSError):  # the other end is closed: Linux says so with an error
                self._bytes += os.read(self._master, 65536)
