"""Tools: forced ones with any model, and those that the demo model calls of its own accord."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.vllm

Ask = Callable[..., dict[str, Any]]
Stream = Callable[..., list[dict[str, Any]]]


def tool(name: str, description: str, /, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


LOOKUP = tool("lookup_drug", "查询药品说明 / look up a medicine", name={"type": "string"})
CHOOSE = tool("choose_drug", "选择药品", drug={"enum": ["布洛芬", "华法林"]})
BOOK = tool("book", "预约门诊", department={"enum": ["心内科", "骨科"]}, urgent={"type": "boolean"})
ASKED = "请查一下布洛芬"


def merged(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tool calls as a client adds their deltas up."""
    calls: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for delta in (d for c in chunk["choices"] for d in c["delta"].get("tool_calls") or ()):
            if "id" in delta:
                assert delta["index"] not in calls
                calls[delta["index"]] = {"name": delta["function"]["name"], "arguments": ""}
                assert delta["id"]
                assert delta["type"] == "function"
            calls[delta["index"]]["arguments"] += delta["function"].get("arguments") or ""
    return [calls[index] for index in sorted(calls)]


def finish_reason(chunks: list[dict[str, Any]]) -> str:
    return str(next(c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]))


def calls_of(completion: dict[str, Any]) -> list[dict[str, Any]]:
    calls = completion["choices"][0]["message"].get("tool_calls") or []
    assert len({c["id"] for c in calls}) == len(calls)
    assert all(c["type"] == "function" for c in calls)
    return [c["function"] for c in calls]


@pytest.mark.parametrize("thinks", [True, False])
def test_a_required_call_is_made(ask: Ask, stream: Stream, thinks: bool) -> None:
    fields = {"tools": [CHOOSE, BOOK], "tool_choice": "required", "parallel_tool_calls": False}
    completion = ask(ASKED, **fields, enable_thinking=thinks)
    (call,) = calls_of(completion)
    arguments = json.loads(call["arguments"])
    if call["name"] == "choose_drug":
        assert arguments["drug"] in ("布洛芬", "华法林")
    else:
        assert (call["name"], set(arguments)) == ("book", {"department", "urgent"})
    assert completion["choices"][0]["finish_reason"] == "tool_calls"
    assert not completion["choices"][0]["message"]["content"]
    assert bool(completion["choices"][0]["message"]["reasoning"]) is thinks
    chunks = stream(ASKED, **fields, enable_thinking=thinks)
    assert merged(chunks) == [call]
    assert finish_reason(chunks) == "tool_calls"


@pytest.mark.parametrize("thinks", [True, False])
def test_a_named_function_is_called_with_its_arguments(ask: Ask, stream: Stream, thinks: bool) -> None:
    fields = {"tools": [CHOOSE, BOOK], "tool_choice": {"type": "function", "function": {"name": "book"}}}
    completion = ask(ASKED, **fields, enable_thinking=thinks)
    (call,) = calls_of(completion)
    assert call["name"] == "book"
    assert json.loads(call["arguments"])["department"] in ("心内科", "骨科")
    assert completion["choices"][0]["finish_reason"] == "stop", "OpenAI's reason for a call that was named"
    assert merged(stream(ASKED, **fields, enable_thinking=thinks)) == [call]


def test_tool_choice_none_offers_nothing(ask: Ask) -> None:
    completion = ask(ASKED, tools=[LOOKUP], tool_choice="none")
    assert calls_of(completion) == []
    assert completion["usage"]["prompt_tokens"] == ask(ASKED)["usage"]["prompt_tokens"]
    assert ask(ASKED, tools=[LOOKUP])["usage"]["prompt_tokens"] > completion["usage"]["prompt_tokens"]


def test_the_model_calls_a_tool_when_it_is_asked_to(ask: Ask, stream: Stream) -> None:
    completion = ask(ASKED, tools=[LOOKUP])
    (call,) = calls_of(completion)
    assert call["name"] == "lookup_drug"
    assert json.loads(call["arguments"]) == {"name": "布洛芬"}
    choice = completion["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning"]
    chunks = stream(ASKED, tools=[LOOKUP])
    assert merged(chunks) == [call]
    assert finish_reason(chunks) == "tool_calls"
    assert not any(c["delta"].get("content") for chunk in chunks for c in chunk["choices"])


def test_the_model_tells_what_a_tool_returned(ask: Ask) -> None:
    (call,) = calls_of(ask(ASKED, tools=[LOOKUP]))
    fact = "非甾体抗炎药，用于退热和缓解疼痛，胃溃疡和肾病患者慎用。"
    messages = [
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": call}]},
        {
            "role": "tool",
            "tool_call_id": "c1",
            "content": json.dumps({"name": "布洛芬", "info": fact}, ensure_ascii=False),
        },
    ]
    completion = ask(messages=messages, tools=[LOOKUP])
    assert calls_of(completion) == []
    assert "退热" in completion["choices"][0]["message"]["content"]


def test_a_question_that_needs_no_tool_is_just_answered(ask: Ask) -> None:
    completion = ask(tools=[LOOKUP])
    assert calls_of(completion) == []
    assert "射血分数" in completion["choices"][0]["message"]["content"]
