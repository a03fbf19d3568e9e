"""What travels between the stages of a turn: frozen, small, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "abort"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One candidate at one place. `text` may be part of a character; `raw` holds its bytes."""

    token_id: int
    logprob: float
    text: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The sampled token and the most likely ones, best first."""

    sampled: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the thought, without its frame."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDone:
    """The thought is over; `truncated` when its budget closed it."""

    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A piece of the answer and the logprobs of its tokens, when they were asked for."""

    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call: the first has `call_id` and `name`, the following ones more of `arguments`."""

    index: int
    call_id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one choice; `cached_tokens` of the prompt came from the prefix cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Safety:
    """What the guard said of the turn. `unchecked`: no guard is installed."""

    verdict: str = "unchecked"
    rules: tuple[str, ...] = ()
    policy: str | None = None


@dataclass(frozen=True, slots=True)
class Replaced:
    """The reply was blocked: `text` is its last content, and stands in place of all that was shown before it."""

    text: str
    safety: Safety


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a choice."""

    reason: FinishReason
    usage: Usage
    stop_reason: str | int | None = None
    thinking_truncated: bool = False
    safety: Safety = field(default_factory=Safety)


Event = Reasoning | ReasoningDone | Answer | ToolCallDelta | Replaced | Finished
