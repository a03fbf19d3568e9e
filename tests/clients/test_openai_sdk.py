"""OpenAI's own SDK: sync, async, streams, tools, structured outputs, and its exceptions for our errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

pytestmark = pytest.mark.clients

ASK: dict[str, Any] = {
    "model": "Qwen3-1.7B",
    "messages": [{"role": "user", "content": "左心室EF值35%是什么意思？"}],
    "temperature": 0,
}
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "lookup_drug",
            "description": "查询药品说明 / look up a medicine",
            "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
        },
    }
]
LOOKUP: dict[str, Any] = ASK | {"messages": [{"role": "user", "content": "请查一下布洛芬"}], "tools": TOOLS}


class Triage(BaseModel):
    department: Literal["心内科", "神经内科"]
    urgent: bool


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="EMPTY", max_retries=0) as client:
        yield client


def test_a_reply_has_both_parts_and_its_usage(client: OpenAI) -> None:
    completion = client.chat.completions.create(**ASK)
    message = completion.choices[0].message
    assert "射血分数" in (message.content or "")
    assert message.model_extra is not None
    assert message.model_extra["reasoning_content"] == message.model_extra["reasoning"]
    assert message.model_extra["reasoning"]
    assert completion.usage is not None
    assert completion.usage.completion_tokens_details is not None
    assert (completion.usage.completion_tokens_details.reasoning_tokens or 0) > 0
    assert completion.choices[0].finish_reason == "stop"


def test_a_stream_adds_up_to_the_whole_reply(client: OpenAI) -> None:
    whole = client.chat.completions.create(**ASK).choices[0].message
    content, reasoning, usage = "", "", None
    with client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}) as chunks:
        for chunk in chunks:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                content += choice.delta.content or ""
                reasoning += (choice.delta.model_extra or {}).get("reasoning_content") or ""
    assert content == whole.content
    assert whole.model_extra is not None
    assert reasoning == whole.model_extra["reasoning_content"]
    assert usage is not None
    assert usage.completion_tokens > 0


def test_the_stream_helper_follows_events_to_the_final_completion(client: OpenAI) -> None:
    with client.chat.completions.stream(**ASK) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert "射血分数" in (final.choices[0].message.content or "")


async def test_the_async_client_says_the_same(url: str, client: OpenAI) -> None:
    expected = client.chat.completions.create(**ASK).choices[0].message.content
    async with AsyncOpenAI(base_url=url, api_key="EMPTY", max_retries=0) as other:
        whole = await other.chat.completions.create(**ASK)
        assert whole.choices[0].message.content == expected
        stream = await other.chat.completions.create(**ASK, stream=True)
        pieces = [c.choices[0].delta.content or "" async for c in stream if c.choices]
    assert "".join(pieces) == expected


def test_a_tool_is_called_and_its_result_told(client: OpenAI) -> None:
    choice = client.chat.completions.create(**LOOKUP).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or ()
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("lookup_drug", {"name": "布洛芬"})
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"name": "布洛芬", "info": "用于退热和缓解疼痛。"}'}
    messages: Any = [*LOOKUP["messages"], choice.message.model_dump(exclude_none=True), result]
    told = client.chat.completions.create(**(LOOKUP | {"messages": messages})).choices[0]
    assert told.finish_reason == "stop"
    assert "退热" in (told.message.content or "")


def test_a_streamed_tool_call_is_put_together_by_the_sdk(client: OpenAI) -> None:
    with client.chat.completions.stream(**LOOKUP) as events:
        events.until_done()
        final = events.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or ()
    assert json.loads(call.function.arguments) == {"name": "布洛芬"}


def test_the_parse_helper_gives_an_object_of_the_asked_class(client: OpenAI) -> None:
    completion = client.chat.completions.parse(**ASK, response_format=Triage, max_completion_tokens=600)
    assert isinstance(completion.choices[0].message.parsed, Triage)


def test_the_models_can_be_listed_and_read(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert "Qwen3-1.7B" in names
    assert client.models.retrieve("Qwen3-1.7B").object == "model"


def test_our_errors_are_its_exceptions(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**(ASK | {"model": "gpt-4"}))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(**ASK, stop="")
    assert (wrong.value.code, wrong.value.param) == ("invalid_request", "stop")
    assert wrong.value.request_id
