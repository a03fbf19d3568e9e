"""Tools that a request forces: the answer is constrained to JSON, which becomes tool calls.

Free tool use (`tool_choice: auto`) needs none of this: the model writes Qwen3's Hermes form and the splitter reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.api.engine.base import Grammar
from services.api.events import Answer, Event, ToolCallDelta


@dataclass(frozen=True, slots=True)
class ForcedCall:
    """`name`: the one function that must be called; `None`: one or more of those offered."""

    name: str | None
    grammar: Grammar
    parallel: bool = True


def force_call(tools: Sequence[Mapping[str, Any]], name: str | None, parallel: bool) -> ForcedCall:
    """The constraint for `tool_choice` "required" (`name` is None) or a named function that is among `tools`."""
    functions = [tool["function"] for tool in tools]
    if name is not None:
        function = next(f for f in functions if f["name"] == name)
        return ForcedCall(name, Grammar("json_schema", _parameters(function)))
    one_of = [
        {
            "type": "object",
            "properties": {"name": {"const": f["name"]}, "arguments": _parameters(f)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for f in functions
    ]
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": one_of}}
    if not parallel:
        schema["maxItems"] = 1
    return ForcedCall(None, Grammar("json_schema", _lift_definitions(schema)), parallel)


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    return dict(function.get("parameters") or {"type": "object", "properties": {}})


def _lift_definitions(schema: dict[str, Any]) -> dict[str, Any]:
    """Moves `$defs` of the functions' schemas to the top, where their `#/$defs/...` references look for them."""
    lifted: dict[str, Any] = {}
    for option in schema["items"]["anyOf"]:
        arguments = option["properties"]["arguments"]
        for key in ("$defs", "definitions"):
            if key in arguments:
                lifted.setdefault(key, {}).update(arguments.pop(key))
    return schema | lifted


class ForcedCallReader:
    """Collects the constrained answer of one choice and turns it into tool calls at its end."""

    def __init__(self, forced: ForcedCall, new_call_id: Callable[[], str]) -> None:
        self._forced = forced
        self._new_call_id = new_call_id
        self._text = ""
        self.calls = 0

    def feed(self, text: str) -> None:
        self._text += text

    def end(self) -> Iterator[Event]:
        """The calls; text that is no complete call (cut off by `max_tokens`) comes as it is, so that nothing is lost."""
        if self._forced.name is not None:
            if self._text:
                yield from self._call(self._forced.name, self._text)
            return
        try:
            calls = [(c["name"], c["arguments"]) for c in json.loads(self._text)]
        except (ValueError, KeyError, TypeError):
            if self._text:
                yield Answer(self._text)
            return
        for name, arguments in calls:
            yield from self._call(name, json.dumps(arguments, ensure_ascii=False))

    def _call(self, name: str, arguments: str) -> Iterator[Event]:
        index, self.calls = self.calls, self.calls + 1
        yield ToolCallDelta(index, call_id=self._new_call_id(), name=name)
        yield ToolCallDelta(index, arguments=arguments)
