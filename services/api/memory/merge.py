"""What is new in the messages that a client sends, when it may send the history as well."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from services.api.memory.errors import HistoryConflict, NothingNew
from services.api.memory.records import PastTurn
from services.contract.chat_format import Message, ToolCall

_WAY_OUT = "send only the new message, the server has the rest; or begin another session"


@dataclass(frozen=True, slots=True)
class Merged:
    """`messages`: what follows the last stored turn, system messages at the front taken out into `system_prompt`."""

    messages: tuple[Message, ...]
    system_prompt: str | None


def merge(turns: Sequence[PastTurn], sent: Sequence[Message], system_prompt: str | None = None) -> Merged:
    """The new messages of a request.

    `turns`: what is stored and over, oldest first. `sent`: cleaned of thoughts and markers. `system_prompt`: the one that
    the session has had so far. A client may send the whole history, its latest part, or nothing of it. Texts are compared
    with runs of whitespace as one space.

    Raises `HistoryConflict` when what was sent contradicts the stored turns, `NothingNew` when no message is new.
    """
    start = next((n for n, m in enumerate(sent) if m.role != "system"), len(sent))
    system = _system(sent[:start], system_prompt, bool(turns))
    rest = list(sent[start:])
    new = rest[_stored_part(turns, rest, start) :] if turns else rest
    if not new or new[-1].role == "assistant":
        raise NothingNew(
            "the last message must be a new one of the user, or a tool's result: add it behind the history"
        )
    if new[0].role == "tool" and not (turns and turns[-1].tool_calls):
        raise HistoryConflict(f"a tool's result follows no tool call of this session: {_WAY_OUT}")
    return Merged(tuple(m.model_copy(update={"reasoning_content": None}) for m in new), system)


def _system(sent: Sequence[Message], stored: str | None, has_turns: bool) -> str | None:
    """Nothing sent, or the same: the stored one. A session without turns and without a prompt takes what is sent."""
    text = "\n".join(m.content for m in sent)
    if not text.strip():
        return stored
    if stored is None and not has_turns:
        return text
    if _plain(text) != _plain(stored or ""):
        raise HistoryConflict(
            "messages[0]: this session has another system prompt: leave the system message out, or begin another session"
        )
    return stored


def _stored_part(turns: Sequence[PastTurn], sent: Sequence[Message], offset: int) -> int:
    """How many of the messages sent are stored already: the most that equal the end of what is stored."""
    stored = _flat(turns)
    for length in range(min(len(stored), len(sent)), 0, -1):
        tail = stored[-length:]
        # From the end: there a wrong alignment shows first.
        if all(_same(tail[n], sent[n]) for n in range(length - 1, -1, -1)):
            return length
    for n, message in enumerate(sent):
        if message.role == "assistant":
            raise HistoryConflict(
                f"messages[{offset + n}]: the history sent is not the end of the {len(turns)} turns that this session "
                f"has: {_WAY_OUT}"
            )
    return 0


def _flat(turns: Sequence[PastTurn]) -> list[tuple[Message, bool]]:
    """Every stored message, and whether it is an answer that was blocked."""
    found: list[tuple[Message, bool]] = []
    for turn in turns:
        found += [(message, False) for message in turn.messages]
        found.append((turn.reply, turn.status == "blocked"))
    return found


def _same(stored: tuple[Message, bool], sent: Message) -> bool:
    """A reader of a stream saw sentences before the one that replaced a blocked answer: its end is what counts."""
    message, blocked = stored
    if message.role != sent.role or not _same_calls(message.tool_calls, sent.tool_calls):
        return False
    ours, theirs = _plain(message.content), _plain(sent.content)
    return ours == theirs or (blocked and bool(ours) and theirs.endswith(ours))


def _same_calls(ours: Sequence[ToolCall], theirs: Sequence[ToolCall]) -> bool:
    return [(c.name, _arguments(c)) for c in ours] == [(c.name, _arguments(c)) for c in theirs]


def _arguments(call: ToolCall) -> str:
    """Clients parse arguments and print them again."""
    try:
        return json.dumps(json.loads(call.arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return _plain(call.arguments)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
