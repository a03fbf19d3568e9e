"""How far long work is: one line that is rewritten on a terminal, a line every tenth elsewhere. To standard error."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO


@dataclass
class Progress:
    """`show` for every step, `note` for what else is worth a line, `end` before anything else is printed."""

    command: str
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    _began: float = field(default_factory=time.monotonic)
    _first: int | None = None
    _open: bool = False
    _tenth: int = -1

    def show(self, done: int, total: int, what: str = "") -> None:
        if self._first is None:
            self._first, self._began = (
                done,
                time.monotonic(),
            )  # what an earlier call did says nothing of this one's pace
        line = f"{self.command}: {done}/{total}{self._left(done, total)} {what}".rstrip()
        if self.stream.isatty():
            print(f"\r\x1b[K{line}", end="", file=self.stream, flush=True)
            self._open = True
        elif (tenth := 10 * done // max(total, 1)) != self._tenth:
            self._tenth = tenth
            print(line, file=self.stream, flush=True)

    def note(self, text: str) -> None:
        self.end()
        print(f"{self.command}: {text}", file=self.stream, flush=True)

    def end(self) -> None:
        if self._open:
            print(file=self.stream, flush=True)
        self._open = False

    def _left(self, done: int, total: int) -> str:
        made = done - (self._first or 0)
        if made < 2 or done >= total:
            return ""
        seconds = (time.monotonic() - self._began) / made * (total - done)
        return f", {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"
