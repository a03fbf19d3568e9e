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
import traceback
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
# Resident identity number: GB 11643, 17 digits and a check character. Mobile: China's numbering plan, 11 digits from 13 to 19.
_PERSONAL = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=\-]{4,}"), r"\1 [redacted]"),
    (re.compile(r"\bmt_[A-Za-z0-9_\-]{16,}"), "[key]"),
    (re.compile(r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]+\.[A-Za-z0-9_\-]*"), "[token]"),
    (re.compile(r"(?<![0-9A-Za-z.])[1-9]\d{5}(?:18|19|20)\d{9}[0-9Xx](?![0-9A-Za-z])"), "[id number]"),
    (re.compile(r"(?<![0-9A-Za-z.])(?:\+?86[ \-]?)?1[3-9]\d[ \-]?\d{4}[ \-]?\d{4}(?![0-9A-Za-z])"), "[phone]"),
    (re.compile(r"[A-Za-z0-9._%+\-]+@[A-Za-z0-9\-]+(?:\.[A-Za-z0-9\-]+)*\.[A-Za-z]{2,}"), "[mail]"),
)
# At debug level the database's and the network's libraries write down every value that passes: patients' words, and keys.
_QUIET = (
    "uvicorn.access", "uvicorn.error", "httpx", "httpcore", "urllib3", "aiosqlite", "sqlalchemy", "asyncpg", "opentelemetry",
    "multipart", "openai",
)  # fmt: skip


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
        return redacted(json.dumps(line, ensure_ascii=False, default=str))

    def formatException(self, ei: Any) -> str:
        return trace_of(ei[1])


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
        return redacted(text + ("\n" + self.formatException(record.exc_info) if record.exc_info else ""))

    def formatException(self, ei: Any) -> str:
        return trace_of(ei[1])


def redacted(text: str) -> str:
    """Without what is recognised as a credential or as personal data, whoever wrote it: the last net, not the rule.

    The rule is that nobody logs what a patient or a client wrote; names cannot be recognised, so they rest on the rule alone.
    """
    for pattern, instead in _PERSONAL:
        text = pattern.sub(instead, text)
    return text


def trace_of(error: BaseException | None) -> str:
    """A stack trace. While a request is served its messages are left out: they may quote what was sent."""
    if error is None:
        return ""
    trace = traceback.TracebackException.from_exception(error)
    if request_id.get() != "-":
        _withhold(trace)
    return "".join(trace.format()).rstrip()


def _withhold(trace: traceback.TracebackException) -> None:
    trace._str = "(message withheld)"  # type: ignore[attr-defined]
    if hasattr(trace, "__notes__"):
        trace.__notes__ = None
    for inner in (trace.__cause__, trace.__context__, *(trace.exceptions or ())):
        if inner is not None:
            _withhold(inner)


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
    quiet_libraries(root.level)
    logging.captureWarnings(True)
    _capture_foreign_lines()


def quiet_libraries(level: int) -> None:
    """Libraries that would tell what passes through them say no more than warnings, whatever `level` is ours."""
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, level))


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
