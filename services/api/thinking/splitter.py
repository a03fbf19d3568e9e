"""A reply's token ids as events: reasoning, answer, tool calls. Split on token id, so a tag is never shown, whole or in part.

Any chunking of the same ids gives the same text. Newlines that only frame (`<think>\\n`, `\\n</think>\\n\\n`) are dropped,
as `ChatFormat.read_reply` does. A model that answers without a thought is taken at its word: everything is answer.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Protocol

from services.api.events import Answer, Event, Reasoning, ReasoningDone, TokenLogprobs, ToolCallDelta
from services.contract.chat_format import (
    END_THINK,
    END_TOOL_CALL,
    THINK,
    TOOL_CALL,
    ChatFormatError,
    ToolCall,
    read_tool_call,
)


class Detokenizer(Protocol):
    """Text of ids, one by one; an empty string while a character is incomplete."""

    def step(self, token_id: int) -> str: ...


class Part(Enum):
    """Where in a reply the next token stands."""

    START = "start"
    REASONING = "reasoning"
    ANSWER = "answer"
    TOOL_CALL = "tool_call"


class ReplySplitter:
    """One reply's state. `feed` takes ids in order, `end` gives what was held back."""

    def __init__(
        self,
        control_ids: dict[str, int],
        new_detokenizer: Callable[[], Detokenizer],
        *,
        start: Part,
        tools: bool,
        new_call_id: Callable[[], str],
        first_call: int = 0,
    ) -> None:
        """`start` is START after a prompt that lets the model think, ANSWER after one that holds an (empty) thought."""
        self._control = {i: name for name, i in control_ids.items()}
        self._new_detokenizer = new_detokenizer
        self._detokenizer = new_detokenizer()
        self._part = start
        self._tools = tools
        self._new_call_id = new_call_id
        self._call_index = itertools.count(first_call)
        self._newlines = ""  # withheld: framing if nothing follows them
        self._leading = True  # nothing but newlines seen in this part
        self._call = ""
        self._logprobs: list[TokenLogprobs] = []
        self.reasoning_tokens = 0
        self.has_reasoning = False
        self.has_answer = False
        self.calls = 0

    @property
    def part(self) -> Part:
        return self._part

    def feed(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()) -> list[Event]:
        """Events of the next ids; `logprobs`, when given, has one entry per id. Neighbouring texts are joined."""
        events: list[Event] = []
        for n, token_id in enumerate(ids):
            events += self._token(token_id, logprobs[n] if logprobs else None)
        return list(_joined(events))

    def end(self) -> list[Event]:
        """At the end of the ids: an unfinished tool call is shown as text, so that nothing is lost."""
        events: list[Event] = []
        if self._part is Part.TOOL_CALL:
            events += self._close_call()
        if self._part in (Part.START, Part.REASONING) and self.has_reasoning:
            events.append(ReasoningDone())
        return events

    def _token(self, token_id: int, logprobs: TokenLogprobs | None) -> Iterator[Event]:
        if self._part is not Part.TOOL_CALL and self._part is not Part.ANSWER:
            self.reasoning_tokens += self._part is Part.REASONING or self._control.get(token_id) == THINK
        control = self._control.get(token_id)
        if control is None:
            yield from self._plain(token_id, logprobs)
        elif control == THINK:
            if self._part is Part.START:
                self._enter(Part.REASONING)
        elif control == END_THINK:
            if self._part in (Part.START, Part.REASONING):
                if self.has_reasoning:
                    yield ReasoningDone()
                self._enter(Part.ANSWER)
        elif control == TOOL_CALL and self._tools:
            # A call inside a thought ends it: Qwen3 sometimes leaves out </think> there.
            if self._part is Part.REASONING and self.has_reasoning:
                yield ReasoningDone()
            if self._part is Part.TOOL_CALL:
                yield from self._close_call()
            self._enter(Part.TOOL_CALL)
            self._call = ""
        elif control == END_TOOL_CALL and self._part is Part.TOOL_CALL:
            yield from self._close_call()
            self._enter(Part.ANSWER)
        # Every other control token frames a turn and is no text.

    def _plain(self, token_id: int, logprobs: TokenLogprobs | None) -> Iterator[Event]:
        if self._part is Part.START:
            self._enter(Part.ANSWER)
        text = self._detokenizer.step(token_id)
        if self._part is Part.TOOL_CALL:
            self._call += text
            return
        if self._part is Part.ANSWER and logprobs is not None:
            self._logprobs.append(logprobs)
        if not text:
            return
        shown = self._without_framing(text)
        if not shown:
            if self._leading:
                self._logprobs.clear()
            return
        if self._part is Part.REASONING:
            self.has_reasoning = True
            yield Reasoning(shown)
        else:
            self.has_answer = True
            taken, self._logprobs = tuple(self._logprobs), []
            yield Answer(shown, taken)

    def _without_framing(self, text: str) -> str:
        """`text` less leading newlines of the part; trailing ones wait for what follows (in reasoning only)."""
        if self._leading:
            text = text.lstrip("\n")
            if not text:
                return ""
            self._leading = False
        if self._part is not Part.REASONING and not self._tools:
            return text
        text = self._newlines + text
        kept = text.rstrip("\n")
        self._newlines = text[len(kept) :]
        return kept

    def _enter(self, part: Part) -> None:
        self._part = part
        self._detokenizer = self._new_detokenizer()
        self._newlines = ""
        self._leading = True
        self._logprobs = []

    def _close_call(self) -> Iterator[Event]:
        text, self._call = self._call, ""
        try:
            call = _read_whole_call(text)
        except ChatFormatError:
            self.has_answer = True
            yield Answer(f"{TOOL_CALL}{text}{END_TOOL_CALL}")
            return
        self.calls += 1
        index = next(self._call_index)
        yield ToolCallDelta(index, call_id=self._new_call_id(), name=call.name)
        yield ToolCallDelta(index, arguments=call.arguments)


def _read_whole_call(text: str) -> ToolCall:
    """A call whose arguments are a JSON object: clients parse them, and a cut-off call has its closing braces missing."""
    call = read_tool_call(text)
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError) as error:
        raise ChatFormatError(f"arguments are not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise ChatFormatError("arguments are not a JSON object")
    return call


def _joined(events: list[Event]) -> Iterator[Event]:
    """Neighbouring texts of one kind as one event: one frame on the wire instead of many."""
    for _, group in itertools.groupby(events, key=type):
        same = list(group)
        first = same[0]
        if isinstance(first, Reasoning):
            yield Reasoning("".join(e.text for e in same if isinstance(e, Reasoning)))
        elif isinstance(first, Answer):
            answers = [e for e in same if isinstance(e, Answer)]
            yield Answer("".join(a.text for a in answers), tuple(p for a in answers for p in a.logprobs))
        else:
            yield from same
