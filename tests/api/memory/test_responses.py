"""/v1/responses over the same turns, read by the real clients: OpenAI's SDK and LangChain."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, NotFoundError

from services.contract.chat_format import END_THINK, END_TOOL_CALL, IM_END, THINK, TOOL_CALL
from tests.api.memory.talking import ANSWERS, from_scratch, talker
from tests.fakes import FakeEngine, Pen
from tests.running import Factory, Running, error_of

FALLBACK = "根据您的描述,存在需要紧急医学评估的风险,请立即前往医院急诊科就诊。"


async def ask(service: Running, text: Any, **more: Any) -> dict[str, Any]:
    answer = await service.client.post("/v1/responses", json={"input": text, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def text_of(response: dict[str, Any]) -> str:
    return "".join(p["text"] for item in response["output"] if item["type"] == "message" for p in item["content"])


async def test_a_response_has_one_time_however_slow_the_clock_is_read(
    url: str, in_process: Factory, pen: Pen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is the stored turn's, not that of the request's arrival."""
    monkeypatch.setattr("services.api.http.responses.time.time", lambda: 1.0e9)
    async with in_process(talker(pen), database=url) as service:
        first = await ask(service, "感冒怎么办？")
        again = (await service.client.get(f"/v1/responses/{first['id']}")).json()
    assert again["created_at"] == first["created_at"]


async def test_a_response_goes_on_from_the_one_before(url: str, in_process: Factory, pen: Pen) -> None:
    engine = talker(pen)
    async with in_process(engine, database=url) as service:
        first = await ask(service, "感冒怎么办？", instructions="你是医生。")
        second = await ask(service, "能运动吗？", previous_response_id=first["id"], instructions="请简短。")
        assert (text_of(first), text_of(second)) == ANSWERS[:2]
        assert [item["type"] for item in first["output"]] == ["reasoning", "message"]
        assert first["output"][0]["summary"] == [{"type": "summary_text", "text": "想一想。"}]
        assert (second["session"]["turn"], second["previous_response_id"]) == (2, first["id"])
        texts = ("感冒怎么办？", ANSWERS[0], "能运动吗？")
        scratch = from_scratch(pen.chat_format, *texts, system="请简短。")
        assert list(engine.asked[-1].prompt_ids) == scratch, "instructions are those of this response alone"
        again = (await service.client.get(f"/v1/responses/{first['id']}")).json()
        same = ("id", "status", "output", "usage", "safety", "created_at", "model")
        assert {k: again[k] for k in same} == {k: first[k] for k in same}


async def test_an_earlier_response_can_be_gone_on_from_twice(url: str, in_process: Factory, pen: Pen) -> None:
    engine = talker(pen)
    async with in_process(engine, database=url) as service:
        first = await ask(service, "感冒怎么办？")
        second = await ask(service, "能运动吗？", previous_response_id=first["id"])
        other = await ask(service, "睡多久？", previous_response_id=first["id"])
        assert other["session"]["id"] != second["session"]["id"] == first["session"]["id"]
        last = await ask(service, "吃药吗？", previous_response_id=other["id"])
        texts = ("感冒怎么办？", ANSWERS[0], "睡多久？", ANSWERS[2], "吃药吗？")
        assert list(engine.asked[-1].prompt_ids) == from_scratch(pen.chat_format, *texts)
        assert last["session"] == {"id": other["session"]["id"], "turn": 3, "dropped_turns": 0, "replayed": False}


async def test_what_is_not_to_be_stored_is_not(url: str, in_process: Factory, pen: Pen) -> None:
    engine = talker(pen)
    async with in_process(engine, database=url) as service:
        free = await ask(service, "感冒怎么办？", store=False)
        error_of(await service.client.get(f"/v1/responses/{free['id']}"), 404, "response_not_found")
        kept = await ask(service, "感冒怎么办？")
        read = await ask(service, "能运动吗？", store=False, previous_response_id=kept["id"])
        error_of(await service.client.get(f"/v1/responses/{read['id']}"), 404, "response_not_found")
        texts = ("感冒怎么办？", ANSWERS[1], "能运动吗？")
        assert list(engine.asked[-1].prompt_ids) == from_scratch(pen.chat_format, *texts)
        assert len((await service.client.get("/v1/sessions")).json()["data"]) == 1


async def test_without_memory_it_still_answers(in_process: Factory, pen: Pen) -> None:
    async with in_process(talker(pen)) as service:
        answer = await ask(service, "感冒怎么办？")
        assert (text_of(answer), answer["store"]) == (ANSWERS[0], False)
        refused = await service.client.post("/v1/responses", json={"input": "好", "previous_response_id": answer["id"]})
        error_of(refused, 400, "unsupported_parameter")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ({"input": []}, "invalid_request"),
        ({"input": "好", "background": True}, "unsupported_parameter"),
        ({"input": "好", "tools": [{"type": "web_search"}]}, "unsupported_parameter"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "unsupported_parameter"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "unsupported_parameter",
        ),
        ({"input": [{"role": "king", "content": "好"}]}, "invalid_request"),
        ({"input": "好", "temperature": 9}, "invalid_request"),
        ({"input": [{"type": "reasoning", "id": "rs", "summary": []}]}, "invalid_request"),
    ],
)
async def test_bad_input_is_named(in_process: Factory, pen: Pen, body: dict[str, Any], code: str) -> None:
    async with in_process(talker(pen)) as service:
        error_of(await service.client.post("/v1/responses", json=body), 400, code)


async def test_unknown_and_foreign_responses_are_not_found(url: str, in_process: Factory, pen: Pen) -> None:
    async with in_process(talker(pen), database=url, api_keys="alice-key,bob-key") as service:
        alice, bob = ({"authorization": f"Bearer {name}-key"} for name in ("alice", "bob"))
        mine = (await service.client.post("/v1/responses", json={"input": "感冒怎么办？"}, headers=alice)).json()
        for previous in (mine["id"], "resp_x", mine["id"][:-8] + "00000000", ""):
            body = {"input": "好", "previous_response_id": previous}
            error_of(await service.client.post("/v1/responses", json=body, headers=bob), 404, "response_not_found")


async def test_openais_client_reads_every_event(url: str, served: Factory, pen: Pen) -> None:
    engine = talker(pen, sizes=(2,))
    async with (
        served(engine, database=url) as service,
        AsyncOpenAI(base_url=f"{service.url}/v1", api_key="EMPTY") as sdk,
    ):
        seen, numbers = [], []
        async with sdk.responses.stream(model="Qwen3-1.7B", input="感冒怎么办？") as stream:
            async for event in stream:
                seen.append(event.type)
                numbers.append(event.sequence_number)
            final = await stream.get_final_response()
        assert final.output_text == ANSWERS[0]
        assert numbers == sorted(set(numbers))
        order = list(dict.fromkeys(seen))
        assert order == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.reasoning_summary_part.added",
            "response.reasoning_summary_text.delta",
            "response.reasoning_summary_text.done",
            "response.reasoning_summary_part.done",
            "response.output_item.done",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.completed",
        ]
        whole = await sdk.responses.create(model="Qwen3-1.7B", input="能运动吗？", previous_response_id=final.id)
        assert whole.output_text == ANSWERS[1]
        assert whole.usage is not None
        assert whole.usage.output_tokens_details.reasoning_tokens > 0
        with pytest.raises(NotFoundError):
            await sdk.responses.retrieve("resp_nothing")


@pytest.mark.parametrize("streaming", [False, True])
async def test_langchain_shows_the_thought_and_remembers(url: str, served: Factory, pen: Pen, streaming: bool) -> None:
    engine = talker(pen, sizes=(2,))
    async with served(engine, database=url) as service:
        chat = ChatOpenAI(
            model="Qwen3-1.7B", base_url=f"{service.url}/v1", api_key="EMPTY", use_responses_api=True,
            use_previous_response_id=True, streaming=streaming,
        )  # fmt: skip
        messages: list[Any] = [("system", "你是医生。"), ("user", "感冒怎么办？")]
        first = await chat.ainvoke(messages)
        assert [b["type"] for b in first.content_blocks] == ["reasoning", "text"]
        assert first.content_blocks[0]["reasoning"] == "想一想。"
        assert first.text == ANSWERS[0]
        second = await chat.ainvoke([*messages, first, ("user", "能运动吗？")])
        assert second.text == ANSWERS[1]
        texts = ("感冒怎么办？", ANSWERS[0], "能运动吗？")
        assert list(engine.asked[-1].prompt_ids) == from_scratch(pen.chat_format, *texts, system="你是医生。")
        assert second.usage_metadata is not None
        assert second.usage_metadata["output_token_details"]["reasoning"] > 0


async def test_a_tool_is_called_and_answered(url: str, served: Factory, pen: Pen) -> None:
    call = '\n{"name": "look", "arguments": {"what": "钾"}}\n'
    asks = pen.write(THINK, "\n查。\n", END_THINK, "\n\n", TOOL_CALL, call, END_TOOL_CALL, IM_END)
    replies = iter([asks, pen.thought("看。", "血钾正常。")])
    engine = FakeEngine(
        pen.chat_format, lambda r: pen.answer("好") if r.request_id.startswith("warm") else next(replies)
    )
    tool: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
    async with (
        served(engine, database=url) as service,
        AsyncOpenAI(base_url=f"{service.url}/v1", api_key="EMPTY") as sdk,
    ):
        first = await sdk.responses.create(model="Qwen3-1.7B", input="血钾呢？", tools=[tool])
        (called,) = [item for item in first.output if item.type == "function_call"]
        assert (called.name, called.arguments) == ("look", '{"what": "钾"}')
        output: Any = {"type": "function_call_output", "call_id": called.call_id, "output": "4.1 mmol/L"}
        second = await sdk.responses.create(
            model="Qwen3-1.7B", input=[output], tools=[tool], previous_response_id=first.id
        )
        assert second.output_text == "血钾正常。"
        prompt = pen.chat_format.read(list(engine.asked[-1].prompt_ids))
        assert [m.role for m in prompt.messages] == ["system", "user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_blocked_response_is_incomplete(url: str, served: Factory, pen: Pen, streaming: bool) -> None:
    engine = talker(pen, ["先看检查。这个药绝对能把您的病彻底治好，保证永不复发。"], sizes=(3,))
    async with (
        served(engine, database=url) as service,
        AsyncOpenAI(base_url=f"{service.url}/v1", api_key="EMPTY") as sdk,
    ):
        if streaming:
            final = None
            async for event in await sdk.responses.create(model="Qwen3-1.7B", input="能治好湿疹吗？", stream=True):
                final = getattr(event, "response", final)
        else:
            final = await sdk.responses.create(model="Qwen3-1.7B", input="能治好湿疹吗？")
        assert final is not None
        assert (final.status, final.incomplete_details.reason) == ("incomplete", "content_filter")
        assert final.output_text == FALLBACK
        stored = await sdk.responses.retrieve(final.id)
        assert stored.output_text == FALLBACK
        assert [item.type for item in stored.output] == ["message"]


async def test_an_engine_that_dies_ends_the_stream_with_response_failed(
    url: str, in_process: Factory, pen: Pen
) -> None:
    engine = talker(pen, ["好。" * 40])
    async with in_process(engine, database=url) as service:
        engine.dies_after = 30
        answer = await service.client.post("/v1/responses", json={"input": "感冒怎么办？", "stream": True})
        last = answer.text.strip().split("\n\n")[-1]
        assert last.startswith("event: response.failed\n")
        assert "engine_unavailable" in last
