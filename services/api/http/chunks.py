"""OpenAI's chat objects from a turn's deltas: `chat.completion.chunk` frames and the one `chat.completion`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring as quoted
from typing import Any

from services.api.events import Finished, Safety, TokenLogprob, TokenLogprobs, ToolCallDelta, Usage
from services.api.http.deltas import Delta
from services.api.http.sse import data_frame


def usage_json(usages: Sequence[Usage]) -> dict[str, Any]:
    """Usage of one response: the prompt counts once, however many choices share it."""
    prompt = usages[0].prompt_tokens if usages else 0
    completion = sum(u.completion_tokens for u in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "completion_tokens_details": {"reasoning_tokens": sum(u.reasoning_tokens for u in usages)},
        "prompt_tokens_details": {"cached_tokens": max((u.cached_tokens for u in usages), default=0)},
    }


def safety_json(safety: Safety) -> dict[str, Any]:
    return {"verdict": safety.verdict, "rules": list(safety.rules), "policy": safety.policy}


def logprobs_json(tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
    return {"content": [{**_token(t.sampled), "top_logprobs": [_token(p) for p in t.top]} for t in tokens]}


def _token(token: TokenLogprob) -> dict[str, Any]:
    # -inf has no JSON; OpenAI's and vLLM's stand-in is -9999.
    return {"token": token.text, "logprob": max(token.logprob, -9999.0), "bytes": list(token.raw)}


def tool_call_json(call: ToolCallDelta) -> dict[str, Any]:
    if call.call_id is not None:
        function = {"name": call.name, "arguments": call.arguments}
        return {"index": call.index, "id": call.call_id, "type": "function", "function": function}
    return {"index": call.index, "function": {"arguments": call.arguments}}


@dataclass(frozen=True, slots=True)
class Head:
    """What every object of one response begins with."""

    id: str
    created: int
    model: str

    def of(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


@dataclass(frozen=True, slots=True)
class AdapterUsed:
    """The version that wrote a reply; part of the record of what a patient was told."""

    name: str
    version: str

    def json(self) -> dict[str, str]:
        return {"name": self.name, "version": self.version}


@dataclass(frozen=True, slots=True)
class SessionUsed:
    """The stored turn that a reply is. `dropped`: oldest turns that did not fit into the prompt."""

    id: str
    turn: int
    dropped: int = 0
    replayed: bool = False

    def json(self) -> dict[str, Any]:
        return {"id": self.id, "turn": self.turn, "dropped_turns": self.dropped, "replayed": self.replayed}


class ChunkWriter:
    """Frames of one streamed response."""

    def __init__(self, head: Head, with_usage: bool) -> None:
        self._head = head.of("chat.completion.chunk")
        opening = data_frame({**self._head, "choices": []}).decode()
        self._prefix = opening[: opening.rindex("[]")] + '[{"index":'
        # `usage: null` in every chunk but the last is how OpenAI announces that a last one follows.
        self._suffix = ',"logprobs":null,"finish_reason":null}]' + (',"usage":null' if with_usage else "") + "}\n\n"
        self._with_usage = with_usage

    def role(self, index: int) -> bytes:
        return self._quick(index, '"role":"assistant","content":""')

    def delta(self, index: int, delta: Delta) -> bytes:
        """One delta. Text alone, nearly every frame, is put together without building objects."""
        if delta.tool_call is None and not delta.logprobs and delta.replaces is None:
            parts = []
            if delta.reasoning:
                text = quoted(delta.reasoning)
                parts.append(f'"reasoning_content":{text},"reasoning":{text}')
            if delta.content:
                parts.append(f'"content":{quoted(delta.content)}')
            return self._quick(index, ",".join(parts))
        body: dict[str, Any] = {}
        if delta.content:
            body["content"] = delta.content
        if delta.tool_call is not None:
            body["tool_calls"] = [tool_call_json(delta.tool_call)]
        more = {} if delta.replaces is None else {"safety": {**safety_json(delta.replaces), "replace": delta.content}}
        return self._full(index, body, logprobs_json(delta.logprobs) if delta.logprobs else None, None, more)

    def finish(
        self, index: int, finished: Finished, adapter: AdapterUsed | None, session: SessionUsed | None = None
    ) -> bytes:
        more: dict[str, Any] = {
            "safety": safety_json(finished.safety),
            "thinking_truncated": finished.thinking_truncated,
            "adapter": adapter.json() if adapter else None,
        }
        if session is not None:
            more["session"] = session.json()
        return self._full(index, {}, None, finished, more)

    def usage(self, finished: Sequence[Finished]) -> bytes:
        usage = usage_json([f.usage for f in finished])
        return data_frame({**self._head, "choices": [], "usage": usage, "safety": safety_json(finished[-1].safety)})

    def _quick(self, index: int, delta: str) -> bytes:
        return f'{self._prefix}{index},"delta":{{{delta}}}{self._suffix}'.encode()

    def _full(
        self, index: int, delta: dict[str, Any], logprobs: Any, finished: Finished | None, more: dict[str, Any]
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": logprobs}
        choice["finish_reason"] = finished.reason if finished else None
        if finished is not None:
            choice["stop_reason"] = finished.stop_reason
        usage = {"usage": None} if self._with_usage else {}
        return data_frame({**self._head, "choices": [choice], **usage, **more})


@dataclass(slots=True)
class CollectedChoice:
    """One choice of a response that is not streamed, as its deltas add up."""

    reasoning: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, delta: Delta) -> None:
        self.reasoning.append(delta.reasoning)
        self.content.append(delta.content)
        self.logprobs += delta.logprobs
        call = delta.tool_call
        if call is not None and call.call_id is not None:
            function = {"name": call.name, "arguments": call.arguments}
            self.calls.append({"id": call.call_id, "type": "function", "function": function})
        elif call is not None:
            self.calls[-1]["function"]["arguments"] += call.arguments

    def json(self, index: int, shows_reasoning: bool, wants_logprobs: bool) -> dict[str, Any]:
        finished = self.finished
        assert finished is not None
        content = "".join(self.content)
        message: dict[str, Any] = {"role": "assistant", "content": content if content or not self.calls else None}
        if shows_reasoning:
            reasoning = "".join(self.reasoning) or None
            message |= {"reasoning_content": reasoning, "reasoning": reasoning}
        if self.calls:
            message["tool_calls"] = self.calls
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs_json(self.logprobs) if wants_logprobs else None,
            "finish_reason": finished.reason,
            "stop_reason": finished.stop_reason,
            "thinking_truncated": finished.thinking_truncated,
        }


def completion_json(
    head: Head,
    choices: Sequence[CollectedChoice],
    shows_reasoning: bool,
    wants_logprobs: bool,
    adapter: AdapterUsed | None,
    session: SessionUsed | None = None,
) -> dict[str, Any]:
    """The `chat.completion` of finished choices."""
    finished = [c.finished for c in choices if c.finished is not None]
    return {
        **head.of("chat.completion"),
        "choices": [c.json(i, shows_reasoning, wants_logprobs) for i, c in enumerate(choices)],
        "usage": usage_json([f.usage for f in finished]),
        "safety": safety_json(finished[0].safety),
        "thinking_truncated": any(f.thinking_truncated for f in finished),
        "adapter": adapter.json() if adapter else None,
        **({"session": session.json()} if session else {}),
    }
