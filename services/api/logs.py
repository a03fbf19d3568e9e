"""Log lines: text on a terminal, JSON elsewhere, from the first byte on, each with the request id it belongs to.

Libraries and child processes write to file descriptors 1 and 2 as they like. `configure` puts a pipe there and turns each
foreign line into a log line, so that a log collector never meets a line that is not JSON.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from contextvars import ContextVar
from typing import IO, Any, Literal

request_id: ContextVar[str] = ContextVar("request_id", default="-")

_COLOURS = {"debug": "2", "info": "36", "warning": "33", "error": "31", "critical": "41"}
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CHILD = re.compile(r"^\((\w+)(?: pid=\d+)?\)\s*")
_VLLM = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d (\[[^\]]*\] )?")
# What vLLM and torch print at every start on a CPU, before or beside their loggers.
_CHATTER = re.compile(
    r"^(Triton |Loading safetensors|\[W\d{4}|.*FutureWarning|\s+if hasattr\(value|\s+wrapper = lookup)"
)
_QUIET = {"uvicorn.access": logging.WARNING, "uvicorn.error": logging.WARNING, "httpx": logging.WARNING}


class JsonFormatter(logging.Formatter):
    """One object a line: ts (UTC, ISO 8601), level, logger, request_id, message, and a record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "ts": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": request_id.get(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """For people: time, level, message, then fields as key=value; colours only where asked for."""

    def __init__(self, colour: bool) -> None:
        super().__init__()
        self.colour = colour

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        shown = f"\x1b[{_COLOURS.get(level, '0')}m{level:7}\x1b[0m" if self.colour else f"{level:7}"
        fields = dict(getattr(record, "fields", {}))
        if request_id.get() != "-":
            fields["request_id"] = request_id.get()
        tail = "".join(f"  {key}={value}" for key, value in fields.items())
        if tail and self.colour:
            tail = f"\x1b[2m{tail}\x1b[0m"
        text = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {shown} {record.getMessage()}{tail}"
        return text + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def fields(**values: Any) -> dict[str, Any]:
    """`log.info("ready", extra=fields(url=url))`: values that JSON lines keep apart from the message."""
    return {"fields": values}


def configure(form: Literal["auto", "text", "json"], level: str) -> None:
    """Takes over this process's log lines, its standard output and its standard error. Call once, first."""
    terminal = sys.stderr.isatty()
    out = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    handler = logging.StreamHandler(out)
    text = form == "text" or (form == "auto" and terminal)
    handler.setFormatter(TextFormatter(terminal) if text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(least, root.level))
    logging.captureWarnings(True)
    _capture_foreign_lines()


def _capture_foreign_lines() -> None:
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    for descriptor in (1, 2):
        os.dup2(write_end, descriptor)
    os.close(write_end)
    lines = os.fdopen(read_end, "r", encoding="utf-8", errors="replace")
    threading.Thread(target=_log_foreign_lines, args=(lines,), name="foreign-lines", daemon=True).start()


def _log_foreign_lines(lines: IO[str]) -> None:
    root = logging.getLogger()
    in_trace = False
    for line in lines:
        source, level, message = read_foreign_line(line)
        # A stack trace is for debugging; its last line, the cause, is for everybody.
        in_trace = message.startswith("Traceback (most") or (in_trace and message.startswith(" "))
        if in_trace:
            level = logging.DEBUG
        elif cause := _CAUSE.fullmatch(message):
            _last_cause[:] = [cause[1]]
        if message and root.isEnabledFor(level):
            # Past the source's own logger: vLLM's writes to standard output, whence the line would come here for ever.
            root.handle(root.makeRecord(source, level, "", 0, message, (), None))


_CAUSE = re.compile(r"(?:\[[^\]]+\] )?((?:[A-Za-z_]+\.)*[A-Z]\w*(?:Error|Exception): .+)")
_last_cause: list[str] = []


def last_foreign_cause() -> str | None:
    """The last line of a stack trace that a child printed: vLLM says "see root cause above", and this is the root cause."""
    return _last_cause[-1] if _last_cause else None


def read_foreign_line(line: str) -> tuple[str, int, str]:
    """(logger name, level, message) of a line that vLLM, one of its processes or any library printed."""
    text = _ANSI.sub("", line).rstrip()
    child = _CHILD.match(text)
    if child:
        text = text[child.end() :]
    vllm = _VLLM.match(text)
    source = "vllm.enginecore" if child and child[1].startswith("EngineCore") else "vllm" if child or vllm else "stdout"
    if vllm:
        return source, logging.getLevelNamesMapping()[vllm[1]], text[vllm.end() :]
    if _CAUSE.fullmatch(text):
        return source, logging.ERROR, text
    return source, logging.DEBUG if _CHATTER.match(text) else logging.INFO, text
