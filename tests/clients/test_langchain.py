"""langchain-openai's ChatOpenAI, in the ways that people use it."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

pytestmark = pytest.mark.clients

QUESTION = "左心室EF值35%是什么意思？"


class Triage(BaseModel):
    """Where to send a patient."""

    department: Literal["心内科", "神经内科"]
    urgent: bool


@tool
def lookup_drug(name: str) -> str:
    """查询药品说明 / look up a medicine"""
    return f"{name}：非甾体抗炎药"


def model(url: str, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model="Qwen3-1.7B", base_url=url, api_key="EMPTY", **({"temperature": 0} | options))


@pytest.mark.parametrize("streaming", [True, False])
def test_invoke_answers_and_counts_the_thought(url: str, streaming: bool) -> None:
    reply = model(url, streaming=streaming, stream_usage=True).invoke(QUESTION)
    assert "射血分数" in reply.content
    usage = reply.usage_metadata
    assert usage is not None
    assert 0 < usage["output_token_details"]["reasoning"] < usage["output_tokens"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert reply.response_metadata["finish_reason"] == "stop"


def test_a_stream_adds_up_to_what_invoke_says(url: str) -> None:
    chunks = list(model(url).stream(QUESTION))
    assert len(chunks) > 5
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert isinstance(whole, AIMessageChunk)
    assert whole.content == model(url).invoke(QUESTION).content


async def test_ainvoke_and_astream_say_the_same(url: str) -> None:
    chat = model(url)
    reply = await chat.ainvoke([SystemMessage("请简短回答。"), HumanMessage(QUESTION)])
    assert reply.content
    pieces = [str(c.content) async for c in chat.astream([SystemMessage("请简短回答。"), HumanMessage(QUESTION)])]
    assert "".join(pieces) == reply.content


def test_the_markers_come_through_extra_body(url: str) -> None:
    reply = model(url, extra_body={"return_reasoning": True}).invoke(QUESTION)
    assert str(reply.content).startswith("<|ReasoningBegin|>")
    assert "<|ReasoningEnd|><|AnswerBegin|>" in reply.content


def test_thinking_is_switched_off_through_extra_body(url: str) -> None:
    reply = model(url, extra_body={"enable_thinking": False}).invoke(QUESTION)
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["output_token_details"]["reasoning"] == 0


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_an_object_of_the_asked_class(url: str, method: Any) -> None:
    found = model(url, max_tokens=600).with_structured_output(Triage, method=method).invoke("胸痛应该挂什么科？")
    assert isinstance(found, Triage)


def test_a_bound_tool_is_called(url: str) -> None:
    reply = model(url).bind_tools([lookup_drug]).invoke("请查一下布洛芬")
    (call,) = reply.tool_calls
    assert (call["name"], call["args"]) == ("lookup_drug", {"name": "布洛芬"})


def test_a_bound_tool_that_must_be_called_is_called(url: str) -> None:
    choose = {"name": "choose", "description": "选择", "parameters": Triage.model_json_schema()}
    reply = model(url, max_tokens=600).bind_tools([choose], tool_choice="any", parallel_tool_calls=False).invoke("头痛")
    (call,) = reply.tool_calls
    assert call["name"] == "choose"
    Triage.model_validate(call["args"])
