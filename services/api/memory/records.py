"""What the store takes and gives: plain, frozen, already opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from services.api.events import Safety, Usage
from services.api.memory.crypto import Sealer
from services.contract.chat_format import Message, ToolCall

Status = Literal["pending", "done", "blocked", "aborted"]
OVER: tuple[Status, ...] = ("done", "blocked")  # turns that later prompts see


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation. Times are seconds since the epoch.

    `row` is `None` until the first turn, or `create`, has written it. `version` counts changes, `turns` the turns begun.
    """

    tenant: str
    id: str
    created: float
    expires: float | None
    ttl_s: float | None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None
    version: int = 0
    turns: int = 0
    row: int | None = None
    sealer: Sealer | None = field(default=None, repr=False, compare=False)

    @property
    def opened(self) -> Sealer:
        """Its sealer; a draft has none, since it has nothing to open."""
        assert self.sealer is not None, "a draft has no turns"
        return self.sealer


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A turn about to be generated. `messages`: what the client said since the last answer.

    `ids`: token ids of `messages` as `TurnWriter.input_ids` writes them, under the chat format `format_digest`.
    `request_hash`: a digest of the whole request, compared when its idempotency key comes again.
    """

    messages: tuple[Message, ...]
    request_id: str
    ids: tuple[int, ...] = ()
    format_digest: str | None = None
    adapter: str | None = None
    adapter_version: str | None = None
    idempotency_key: str | None = None
    request_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a turn ended. `answer` is what the reader was left with; `ids` those of `TurnWriter.reply_ids`."""

    status: Literal["done", "blocked", "aborted"]
    answer: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    thinking_truncated: bool = False
    safety: Safety = field(default_factory=Safety)
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class TurnHandle:
    """A pending turn of ours, to be finished. `created`: seconds since 1970, as stored."""

    session: Session
    seq: int
    created: float


@dataclass(frozen=True, slots=True)
class PastTurn:
    """A turn as later prompts need it: without its thought. Ids are empty when none were stored."""

    seq: int
    status: Status
    messages: tuple[Message, ...]
    answer: str
    tool_calls: tuple[ToolCall, ...] = ()
    input_ids: tuple[int, ...] = ()
    reply_ids: tuple[int, ...] = ()
    format_digest: str | None = None

    @property
    def reply(self) -> Message:
        return Message(role="assistant", content=self.answer, tool_calls=self.tool_calls)

    @property
    def answers_tools(self) -> bool:
        """Whether it goes on from the tool calls of the turn before."""
        return bool(self.messages) and self.messages[0].role == "tool"


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn as its owner reads it. `seq` counts from 1."""

    seq: int
    status: Status
    messages: tuple[Message, ...]
    answer: str
    reasoning: str | None
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str | None
    thinking_truncated: bool
    safety: Safety
    usage: Usage
    adapter: str | None
    adapter_version: str | None
    request_id: str
    created: float
    finished: float | None


@dataclass(frozen=True, slots=True)
class History:
    """A session and its turns that are over, oldest first."""

    session: Session
    turns: tuple[PastTurn, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list; `next_cursor` asks for the following one, `None` on the last."""

    sessions: tuple[Session, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep has done."""

    sessions: int = 0
    turns_aborted: int = 0
