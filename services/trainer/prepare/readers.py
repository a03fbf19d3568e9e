"""JSONL lines to conversations, in any of the three forms that people have such data in. Judges form, not content.

{"question": ..., "think": ..., "answer": ...}                          the article's; other columns are counted
{"messages": [..., {"role": "assistant", "reasoning_content": ..., "content": ...}]}
{"messages": [..., {"role": "assistant", "content": "<think>...</think>..."}]}
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.contract.chat_format import Message
from services.trainer.dataset import DatasetError, FileCard
from services.trainer.prepare.messages import FormError, read_messages
from services.trainer.prepare.problems import Problem
from services.trainer.prepare.texts import normalise

FORMS = ("question, think, answer", "messages, reasoning_content", "messages, inline <think>", "messages, no reasoning")
_SURROGATE = re.compile("[\ud800-\udfff]")
_COLUMNS = {"messages": {"messages", "tools"}, "question": {"question", "think", "answer"}}


@dataclass(frozen=True)
class Record:
    """One conversation. `where` is `file:line`; `form` one of `FORMS`; `extra` names the columns that were not used."""

    where: str
    form: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    extra: tuple[str, ...] = ()


@dataclass
class Read:
    """Everything that was in the files; `changed` counts texts that were normalised."""

    records: list[Record] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    sources: dict[str, FileCard] = field(default_factory=dict)
    extra: Counter[str] = field(default_factory=Counter)
    changed: int = 0


def read_files(paths: Sequence[Path], allow_empty_think: bool = False) -> Read:
    """Reads every line of every file. Raises `DatasetError` for a file that cannot be opened, or two of the same name."""
    read = Read()
    for path in paths:
        if path.name in read.sources:
            raise DatasetError(f"two files are named {path.name}: lines are told by file name, rename one")
        content = _read_bytes(path)
        lines = _lines(content)
        read.sources[path.name] = FileCard(sha256=hashlib.sha256(content).hexdigest(), rows=len(lines))
        if lines and lines[0][1].lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
            problem = Problem(f"{path.name}:{lines[0][0]}", "json", "a JSON array: write one object a line instead")
            read.problems.append(problem)
            continue
        for number, line in lines:
            _read_line(line, f"{path.name}:{number}", read, allow_empty_think)
    return read


def read_questions(path: Path) -> list[Record]:
    """Conversations of which only the user's turns matter, so that lines with nothing but a `question` will do.

    Raises `DatasetError` for the first line without any.
    """
    records: list[Record] = []
    for number, line in _lines(_read_bytes(path)):
        where = f"{path.name}:{number}"
        try:
            value = json.loads(line)
            turns = value["messages"] if "messages" in value else [{"role": "user", "content": value["question"]}]
            users = [Message(role="user", content=turn["content"]) for turn in turns if turn["role"] == "user"]
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{where}: no question to hold out: give a question, or messages") from error
        if users:
            records.append(Record(where, FORMS[0], tuple(users)))
    return records


def _read_line(line: bytes, where: str, read: Read, allow_empty_think: bool) -> None:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        read.problems.append(Problem(where, "json", f"byte {error.start + 1} of the line is not UTF-8"))
        return
    except (ValueError, RecursionError) as error:
        read.problems.append(Problem(where, "json", str(error)))
        return
    if not isinstance(value, dict):
        read.problems.append(Problem(where, "json", f"not an object but {type(value).__name__}"))
        return
    if any(_SURROGATE.search(text) for text in _texts(value)):
        read.problems.append(Problem(where, "character", "half a surrogate pair, which no tokenizer takes"))
        return
    try:
        record = _read_record(value, where, allow_empty_think)
    except FormError as error:
        read.problems += [Problem(where, kind, message) for kind, message in error.problems]
        return
    read.extra.update(record.extra)
    used = (value.get(name) for name in _COLUMNS["messages"] | _COLUMNS["question"] if name != "tools")
    read.changed += sum(text != normalise(text) for part in used for text in _texts(part))
    read.records.append(record)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error


def _lines(content: bytes) -> list[tuple[int, bytes]]:
    """Lines that hold something, with their numbers from 1."""
    return [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]


def _read_record(value: dict[str, Any], where: str, allow_empty_think: bool) -> Record:
    if "messages" in value:
        messages, form = read_messages(value["messages"])
        extra = tuple(name for name in value if name not in _COLUMNS["messages"])
        return Record(where, form, messages, _read_tools(value.get("tools")), extra)
    if "question" in value:
        extra = tuple(name for name in value if name not in _COLUMNS["question"])
        return Record(where, FORMS[0], _read_columns(value, allow_empty_think), extra=extra)
    raise FormError("form", f"has neither messages nor question, think, answer but {', '.join(value) or 'nothing'}")


def _read_columns(value: dict[str, Any], allow_empty_think: bool) -> tuple[Message, ...]:
    problems: list[tuple[str, str]] = []
    texts: dict[str, str] = {}
    for name in ("question", "think", "answer"):
        text = value.get(name)
        if text is not None and not isinstance(text, str):
            problems.append(("form", f"{name} is not text but {type(text).__name__}"))
            continue
        texts[name] = normalise(text or "")
        if not texts[name] and not (name == "think" and allow_empty_think):
            hint = " (--empty-think mask trains such replies with thinking off)" if name == "think" else ""
            problems.append(("empty", f"{name} is {'missing' if name not in value else 'blank'}{hint}"))
    if problems:
        raise FormError(*problems[0], problems)
    reply = Message(role="assistant", content=texts["answer"], reasoning_content=texts["think"] or None)
    return (Message(role="user", content=texts["question"]), reply)


def _read_tools(value: Any) -> tuple[dict[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise FormError("form", "tools is not a list of objects")
    return tuple(value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        parts: Iterable[Any] = value.values() if isinstance(value, dict) else value
        for part in parts:
            yield from _texts(part)
