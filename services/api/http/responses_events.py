"""A turn's deltas as OpenAI's response: items that grow, the events that tell of it, and the whole object at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.api.events import Finished, ToolCallDelta, Usage
from services.api.http.chunks import safety_json
from services.api.http.deltas import Delta
from services.api.http.sse import data_frame

Event = dict[str, Any]


def event_frame(event: Event) -> bytes:
    kind: str = event["type"]
    return b"event: " + kind.encode() + b"\n" + data_frame(event)


def usage_of(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def reasoning_item(item_id: str, texts: Sequence[str]) -> dict[str, Any]:
    return {"id": item_id, "type": "reasoning", "summary": [{"type": "summary_text", "text": text} for text in texts]}


def message_item(item_id: str, text: str | None, status: str) -> dict[str, Any]:
    content = [] if text is None else [_text_part(text)]
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def call_item(item_id: str, call_id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    return {
        "id": item_id, "type": "function_call", "call_id": call_id, "name": name, "arguments": arguments,
        "status": status,
    }  # fmt: skip


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


@dataclass
class _Open:
    """The item that grows now."""

    kind: str
    id: str
    index: int
    text: list[str] = field(default_factory=list)
    call_id: str = ""
    name: str = ""


class ResponseWriter:
    """Feed it the deltas of one choice; it gives the events, and keeps the items."""

    def __init__(self, base: Callable[[], dict[str, Any]], response_id: Callable[[], str]) -> None:
        """`base`: the response object without status, output and usage. Both are asked once the turn has begun."""
        self._base = base
        self._response_id = response_id
        self._sequence = -1
        self._open: _Open | None = None
        self._items: list[dict[str, Any]] = []

    def begin(self) -> Iterator[Event]:
        response = self._response("in_progress")
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def take(self, delta: Delta) -> Iterator[Event]:
        """Events of one delta."""
        if delta.reasoning:
            yield from self._switch("reasoning")
            yield self._delta("response.reasoning_summary_text.delta", delta.reasoning, summary_index=0)
        if delta.content:
            yield from self._switch("message")
            more: dict[str, Any] = {"logprobs": []}
            if delta.replaces is not None:
                more["safety"] = {**safety_json(delta.replaces), "replace": delta.content}
                assert self._open is not None
                self._open.text.clear()  # the finished text is what stands in the reply's place, alone
            yield self._delta("response.output_text.delta", delta.content, content_index=0, **more)
        if delta.tool_call is not None:
            yield from self._call(delta.tool_call)

    def end(self, finished: Finished) -> Iterator[Event]:
        """The last items, and the whole response."""
        if self._open is None and not self._items:
            yield from self._switch("message")  # a reply without a word is an empty message
        yield from self._close()
        whole = self.whole(finished)
        yield self._event(f"response.{whole['status']}", response=whole)

    def failed(self, error: dict[str, Any]) -> Event:
        """The stream's last event when the turn failed after it had begun."""
        response = self._response("failed") | {"error": {"code": error["code"], "message": error["message"]}}
        return self._event("response.failed", response=response)

    def whole(self, finished: Finished) -> dict[str, Any]:
        """The response object of a finished turn."""
        return finished_response(self._base(), self._items, finished)

    def _response(self, status: str) -> dict[str, Any]:
        return self._base() | {"status": status, "output": list(self._items), "usage": None}

    def _event(self, kind: str, **fields: Any) -> Event:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence, **fields}

    def _delta(self, kind: str, text: str, **fields: Any) -> Event:
        opened = self._open
        assert opened is not None
        opened.text.append(text)
        return self._event(kind, item_id=opened.id, output_index=opened.index, delta=text, **fields)

    def _switch(self, kind: str) -> Iterator[Event]:
        if self._open is not None and self._open.kind == kind:
            return
        yield from self._close()
        prefix = {"reasoning": "rs", "message": "msg"}[kind]
        opened = self._start(kind, prefix)
        place = {"item_id": opened.id, "output_index": opened.index}
        if kind == "reasoning":
            yield self._event(
                "response.output_item.added", output_index=opened.index, item=reasoning_item(opened.id, ())
            )
            part = {"type": "summary_text", "text": ""}
            yield self._event("response.reasoning_summary_part.added", **place, summary_index=0, part=part)
        else:
            item = message_item(opened.id, None, "in_progress")
            yield self._event("response.output_item.added", output_index=opened.index, item=item)
            yield self._event("response.content_part.added", **place, content_index=0, part=_text_part(""))

    def _start(self, kind: str, prefix: str) -> _Open:
        index = len(self._items)
        self._open = _Open(kind, f"{prefix}_{self._response_id().removeprefix('resp_')}_{index}", index)
        return self._open

    def _call(self, call: ToolCallDelta) -> Iterator[Event]:
        if call.call_id is not None:
            yield from self._close()
            opened = self._start("function_call", "fc")
            opened.call_id, opened.name = call.call_id, call.name or ""
            item = call_item(opened.id, opened.call_id, opened.name, "", "in_progress")
            yield self._event("response.output_item.added", output_index=opened.index, item=item)
        if call.arguments:
            yield self._delta("response.function_call_arguments.delta", call.arguments)

    def _close(self) -> Iterator[Event]:
        opened, self._open = self._open, None
        if opened is None:
            return
        text, place = "".join(opened.text), {"item_id": opened.id, "output_index": opened.index}
        if opened.kind == "reasoning":
            part = {"type": "summary_text", "text": text}
            yield self._event("response.reasoning_summary_text.done", **place, summary_index=0, text=text)
            yield self._event("response.reasoning_summary_part.done", **place, summary_index=0, part=part)
            item = reasoning_item(opened.id, [text])
        elif opened.kind == "message":
            yield self._event("response.output_text.done", **place, content_index=0, text=text, logprobs=[])
            yield self._event("response.content_part.done", **place, content_index=0, part=_text_part(text))
            item = message_item(opened.id, text, "completed")
        else:
            yield self._event("response.function_call_arguments.done", **place, name=opened.name, arguments=text)
            item = call_item(opened.id, opened.call_id, opened.name, text, "completed")
        self._items.append(item)
        yield self._event("response.output_item.done", output_index=opened.index, item=item)


def finished_response(base: dict[str, Any], items: Sequence[dict[str, Any]], finished: Finished) -> dict[str, Any]:
    """The response object; a reply that was cut or blocked is `incomplete`, with the reason."""
    reason = {"length": "max_output_tokens", "content_filter": "content_filter", "abort": "interrupted"}.get(
        finished.reason
    )
    return base | {
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "output": list(items),
        "usage": usage_of(finished.usage),
        "safety": safety_json(finished.safety),
        "thinking_truncated": finished.thinking_truncated,
    }
