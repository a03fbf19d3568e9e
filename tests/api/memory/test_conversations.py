"""Conversations over HTTP: the server brings the history, keeps what the reader was left with, one turn at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from services.contract.chat_format import (
    DEFAULT_SYSTEM_PROMPT,
    END_THINK,
    END_TOOL_CALL,
    IM_END,
    THINK,
    TOOL_CALL,
)
from tests.api.memory.talking import ANSWERS, from_scratch, say, stored, talker, user
from tests.fakes import FakeEngine, Pen
from tests.running import Factory, error_of, frames_of, until

CHAT = "/v1/chat/completions"
FALLBACK = "根据您的描述,存在需要紧急医学评估的风险,请立即前往医院急诊科就诊。"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_server_brings_the_history(url: str, in_process: Factory, pen: Pen, stream: bool) -> None:
    engine = talker(pen, sizes=(3, 1))
    async with in_process(engine, database=url) as service:
        first = await say(service, "感冒怎么办？", stream=stream)
        second = await say(service, "能运动吗？", stream=stream)
    assert first["session"] == {"id": "s1", "turn": 1, "dropped_turns": 0, "replayed": False}
    assert second["session"]["turn"] == 2
    scratch = from_scratch(pen.chat_format, "感冒怎么办？", ANSWERS[0], "能运动吗？")
    assert list(engine.asked[-1].prompt_ids) == scratch


async def test_it_lives_on_in_the_next_process(url: str, in_process: Factory, pen: Pen) -> None:
    async with in_process(talker(pen), database=url) as service:
        await say(service, "感冒怎么办？")
    engine = talker(pen, ANSWERS[1:])
    async with in_process(engine, database=url) as service:
        assert (await say(service, "能运动吗？"))["session"]["turn"] == 2
        scratch = from_scratch(pen.chat_format, "感冒怎么办？", ANSWERS[0], "能运动吗？")
        assert list(engine.asked[-1].prompt_ids) == scratch


async def test_a_client_that_sends_the_history_too_gets_the_same_prompt(
    url: str, in_process: Factory, pen: Pen
) -> None:
    """The article's loop: it keeps a list and sends all of it, thought and markers included."""
    engine = talker(pen)
    async with in_process(engine, database=url) as service:
        said: list[dict[str, Any]] = [{"role": "system", "content": "你是医生。"}]
        for text in ("感冒怎么办？", "能运动吗？", "睡多久？"):
            said.append(user(text))
            answer = await service.chat(session_id="loop", messages=said, return_reasoning=True)
            assert answer.status_code == 200, answer.text
            said.append(answer.json()["choices"][0]["message"])
        found = await stored(service, "loop")
    texts = ("感冒怎么办？", ANSWERS[0], "能运动吗？", ANSWERS[1], "睡多久？")
    assert list(engine.asked[-1].prompt_ids) == from_scratch(pen.chat_format, *texts, system="你是医生。")
    assert [turn["messages"] for turn in found["turns"]] == [[user(t)] for t in texts[::2]]
    assert found["system_prompt"] == "你是医生。"


async def test_a_history_that_contradicts_is_refused(url: str, in_process: Factory, pen: Pen) -> None:
    async with in_process(talker(pen), database=url) as service:
        await say(service, "感冒怎么办？")
        forged = [user("感冒怎么办？"), {"role": "assistant", "content": "吃抗生素。"}, user("好吗？")]
        error_of(await service.chat(session_id="s1", messages=forged), 409, "history_conflict")
        other = [{"role": "system", "content": "别的角色。"}, user("好吗？")]
        error_of(await service.chat(session_id="s1", messages=other), 409, "history_conflict")
        old = [user("感冒怎么办？"), {"role": "assistant", "content": ANSWERS[0]}]
        error_of(await service.chat(session_id="s1", messages=old), 400, "nothing_new")
        assert (await say(service, "能运动吗？"))["session"]["turn"] == 2


async def test_a_session_is_shown_with_thought_verdict_and_times(url: str, in_process: Factory, pen: Pen) -> None:
    async with in_process(talker(pen), database=url) as service:
        answer = await say(service, "感冒怎么办？")
        await say(service, "能运动吗？", include_reasoning=False)
        found = await stored(service)
        first, second = found["turns"]
        assert (first["answer"], first["reasoning"], first["status"]) == (ANSWERS[0], "想一想。", "done")
        assert first["safety"] == answer["safety"]
        assert first["usage"] == answer["usage"]
        assert first["response_id"] == answer["id"]
        assert first["created"] <= first["finished"]
        assert second["reasoning"] is None, "what was not shown was not judged"
        page = (await service.client.get("/v1/sessions/s1", params={"after": 1, "limit": 1})).json()
        assert [turn["turn"] for turn in page["turns"]] == [2]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_blocked_turn_is_kept_as_its_fallback(url: str, in_process: Factory, pen: Pen, stream: bool) -> None:
    engine = talker(pen, ["先看检查。这个药绝对能把您的病彻底治好，保证永不复发。", "好。"])
    async with in_process(engine, database=url) as service:
        last = await say(service, "这个药能治好湿疹吗？", stream=stream)
        assert last["safety"]["verdict"] == "block"
        (turn,) = (await stored(service))["turns"]
        assert (turn["status"], turn["answer"], turn["reasoning"]) == ("blocked", FALLBACK, None)
        assert turn["finish_reason"] == "content_filter"
        await say(service, "那怎么办？")
        texts = ("这个药能治好湿疹吗？", FALLBACK, "那怎么办？")
        assert list(engine.asked[-1].prompt_ids) == from_scratch(pen.chat_format, *texts)


async def test_an_allergy_told_in_the_first_turn_counts_in_the_fifth(url: str, in_process: Factory, pen: Pen) -> None:
    """Also when the window has dropped that turn."""
    filler = "请多休息，按时吃饭。" * 20
    engine = talker(pen, [filler, filler, filler, filler, "阿莫西林一天三次，一次两粒，三天见效。"], max_model_len=600)
    async with in_process(engine, database=url) as service:
        for text in ("我青霉素过敏，记一下", "怎么睡好？", "怎么吃？", "多久复查？"):
            await say(service, text, max_tokens=290)
        last = await say(service, "嗓子疼，吃什么药？", max_tokens=290)
        assert last["session"]["dropped_turns"] > 1
        assert last["safety"]["verdict"] == "block"
        assert "allergy" in last["safety"]["rules"]


async def test_the_window_drops_whole_turns_and_keeps_the_system_prompt(
    url: str, in_process: Factory, pen: Pen
) -> None:
    engine = talker(pen, ["好的。" * 30] * 8, max_model_len=512)
    async with in_process(engine, database=url) as service:
        dropped = [
            (await say(service, f"第{n}问：" + "头疼。" * 20, max_tokens=100))["session"]["dropped_turns"]
            for n in range(8)
        ]
        prompts = [pen.chat_format.read(list(r.prompt_ids)) for r in engine.asked]
    assert dropped == sorted(dropped)
    assert dropped[-1] > 0
    for n, prompt in enumerate(prompts):
        assert prompt.messages[0].content == DEFAULT_SYSTEM_PROMPT
        questions = [m.content for m in prompt.messages if m.role == "user"]
        assert questions[0].startswith(f"第{dropped[n]}问")
        assert len(questions) == n + 1 - dropped[n]


async def test_a_retry_gets_the_stored_answer(url: str, in_process: Factory, pen: Pen) -> None:
    engine = talker(pen)
    async with in_process(engine, database=url) as service:
        body = {"session_id": "s1", "messages": [user("感冒怎么办？")]}
        key = {"idempotency-key": "5e1c"}
        first = (await service.client.post(CHAT, json=body, headers=key)).json()
        again = (await service.client.post(CHAT, json=body, headers=key)).json()
        streamed = frames_of((await service.client.post(CHAT, json={**body, "stream": True}, headers=key)).text)
        assert again["session"] == first["session"] | {"replayed": True}
        assert {k: v for k, v in again.items() if k != "session"} == {k: v for k, v in first.items() if k != "session"}
        assert "".join(f["choices"][0]["delta"].get("content") or "" for f in streamed) == ANSWERS[0]
        assert streamed[-1]["session"] == again["session"]
        assert len(engine.asked) == 1
        other = {**body, "messages": [user("别的")]}
        error_of(await service.client.post(CHAT, json=other, headers=key), 409, "idempotency_conflict")
        error_of(
            await service.client.post(CHAT, json=body, headers={"idempotency-key": "k" * 300}),
            400,
            "invalid_idempotency_key",
        )


async def test_sessions_belong_to_their_key(url: str, in_process: Factory, pen: Pen) -> None:
    engine = talker(pen)
    async with in_process(engine, database=url, api_keys="alice-key,bob-key") as service:
        alice, bob = ({"authorization": f"Bearer {name}-key"} for name in ("alice", "bob"))
        body = {"session_id": "mine", "messages": [user("感冒怎么办？")]}
        assert (await service.client.post(CHAT, json=body, headers=alice)).status_code == 200
        error_of(await service.client.get("/v1/sessions/mine", headers=bob), 404, "session_not_found")
        error_of(await service.client.delete("/v1/sessions/mine", headers=bob), 404, "session_not_found")
        assert (await service.client.get("/v1/sessions", headers=bob)).json()["data"] == []
        assert (await service.client.post(CHAT, json=body, headers=bob)).json()["session"]["turn"] == 1
        assert (await service.client.post(CHAT, json=body | {"messages": [user("还有呢？")]}, headers=alice)).json()[
            "session"
        ]["turn"] == 2
        salts = [request.cache_salt for request in engine.asked]
        assert salts[0] == salts[2] != salts[1]
        assert None not in salts


async def test_turns_of_a_session_run_one_at_a_time_others_beside_them(url: str, served: Factory, pen: Pen) -> None:
    engine = talker(pen, delay_s=0.005)
    async with served(engine, database=url) as service:
        engine.most_running = 0  # the warm-up ran several
        same = [say(service, text) for text in ("感冒怎么办？", "能运动吗？")]
        other = say(service, "睡多久？", session="s2")
        turns = await asyncio.gather(*same, other)
        assert sorted(turn["session"]["turn"] for turn in turns[:2]) == [1, 2]
        assert engine.most_running == 2
        found = await stored(service)
        assert [turn["status"] for turn in found["turns"]] == ["done", "done"]


async def test_who_waits_too_long_is_told_so(url: str, served: Factory, pen: Pen) -> None:
    engine = talker(pen, delay_s=0.05)
    async with served(engine, database=url, session_wait_s=0.1) as service:
        first = asyncio.create_task(say(service, "感冒怎么办？"))
        await until(lambda: bool(engine.running))
        refused = await service.chat(session_id="s1", messages=[user("能运动吗？")])
        error_of(refused, 409, "session_busy")
        assert int(refused.headers["retry-after"]) > 0
        assert (await first)["session"]["turn"] == 1


async def test_a_client_that_leaves_leaves_an_honest_record(url: str, served: Factory, pen: Pen) -> None:
    engine = talker(pen, delay_s=0.02)
    async with served(engine, database=url) as service:
        with pytest.raises(httpx.ReadTimeout):
            await service.client.post(CHAT, json={"session_id": "s1", "messages": [user("感冒怎么办？")]}, timeout=0.2)
        await until(lambda: bool(engine.aborted))
        assert (await say(service, "能运动吗？"))["session"]["turn"] == 2
        first, second = (await stored(service))["turns"]
        assert (first["status"], first["messages"]) == ("aborted", [user("感冒怎么办？")])
        assert second["status"] == "done"
        assert list(engine.asked[-1].prompt_ids) == from_scratch(pen.chat_format, "能运动吗？")


async def test_a_dead_engine_leaves_an_honest_record(url: str, in_process: Factory, pen: Pen) -> None:
    engine = talker(pen)
    async with in_process(engine, database=url) as service:
        engine.dies_after = 3
        answer = await service.chat(session_id="s1", messages=[user("感冒怎么办？")])
        error_of(answer, 503, "engine_unavailable")
        engine.dies_after = None
        await until(lambda: service.service.supervisor.is_ready)
        assert (await say(service, "能运动吗？"))["session"]["turn"] == 2
        assert [turn["status"] for turn in (await stored(service))["turns"]] == ["aborted", "done"]


async def test_tools_go_on_across_turns(url: str, in_process: Factory, pen: Pen) -> None:
    call = '\n{"name": "look", "arguments": {"what": "钾"}}\n'
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    asks = pen.write(THINK, "\n查。\n", END_THINK, "\n\n", TOOL_CALL, call, END_TOOL_CALL, IM_END)
    replies = iter([asks, pen.thought("看。", "血钾正常。")])
    engine = FakeEngine(
        pen.chat_format, lambda r: pen.answer("好") if r.request_id.startswith("warm") else next(replies)
    )
    async with in_process(engine, database=url) as service:
        first = (await service.chat(session_id="s1", messages=[user("血钾呢？")], tools=tools)).json()
        assert first["choices"][0]["finish_reason"] == "tool_calls"
        result = {"role": "tool", "tool_call_id": "x", "content": "4.1 mmol/L"}
        second = (await service.chat(session_id="s1", messages=[result], tools=tools)).json()
        assert second["choices"][0]["message"]["content"] == "血钾正常。"
        prompt = pen.chat_format.read(list(engine.asked[-1].prompt_ids))
        assert [m.role for m in prompt.messages] == ["system", "user", "assistant", "tool", "assistant"]
        assert prompt.messages[2].tool_calls[0].name == "look"
        turns = (await stored(service))["turns"]
        assert turns[0]["tool_calls"][0]["function"]["name"] == "look"


# The routes


async def test_sessions_are_made_listed_and_erased(url: str, in_process: Factory, pen: Pen) -> None:
    engine = talker(pen)
    async with in_process(engine, database=url) as service:
        http = service.client
        made = (
            await http.post("/v1/sessions", json={"metadata": {"ward": "三"}, "ttl_s": 3600, "system_prompt": "简短。"})
        ).json()
        assert made["object"] == "session"
        assert (made["metadata"], made["system_prompt"], made["turns"]) == ({"ward": "三"}, "简短。", 0)
        assert made["expires"] - made["created"] == 3600
        named = (await http.post("/v1/sessions", json={"id": "mine"})).json()
        error_of(await http.post("/v1/sessions", json={"id": "mine"}), 409, "session_exists")
        await say(service, "感冒怎么办？", session=made["id"])
        assert list(engine.asked[-1].prompt_ids) == from_scratch(pen.chat_format, "感冒怎么办？", system="简短。")
        page = (await http.get("/v1/sessions", params={"limit": 1})).json()
        rest = (await http.get("/v1/sessions", params={"limit": 1, "cursor": page["next_cursor"]})).json()
        assert {page["data"][0]["id"], rest["data"][0]["id"]} == {made["id"], named["id"]}
        assert (page["has_more"], rest["has_more"], rest["next_cursor"]) == (True, False, None)
        gone = (await http.delete(f"/v1/sessions/{made['id']}")).json()
        assert gone == {"id": made["id"], "object": "session.deleted", "deleted": True, "erased": True}
        error_of(await http.get(f"/v1/sessions/{made['id']}"), 404, "session_not_found")
        error_of(await http.delete(f"/v1/sessions/{made['id']}"), 404, "session_not_found")


async def test_a_session_made_without_a_prompt_takes_the_first_one_sent(
    url: str, in_process: Factory, pen: Pen
) -> None:
    engine = talker(pen)
    async with in_process(engine, database=url) as service:
        await service.client.post("/v1/sessions", json={"id": "s1"})
        system = {"role": "system", "content": "你是护士。"}
        for text in ("感冒怎么办？", "能运动吗？"):
            answer = await service.chat(session_id="s1", messages=[system, user(text)])
            assert answer.status_code == 200, answer.text
        texts = ("感冒怎么办？", ANSWERS[0], "能运动吗？")
        assert list(engine.asked[-1].prompt_ids) == from_scratch(pen.chat_format, *texts, system="你是护士。")


@pytest.mark.parametrize("bad", ["", "a" * 129, "a/b", "../x", "a b", "a\n", "名字", "..", "\x00"])
async def test_ids_that_no_session_can_have(in_process: Factory, pen: Pen, tmp_path: Any, bad: str) -> None:
    async with in_process(talker(pen), database=f"{tmp_path}/m.db") as service:
        error_of(await service.chat(session_id=bad, messages=[user("好")]), 400, "invalid_session_id")
        error_of(await service.client.post("/v1/sessions", json={"id": bad}), 400, "invalid_session_id")


async def test_bad_input_is_named(in_process: Factory, pen: Pen, tmp_path: Any) -> None:
    async with in_process(talker(pen), database=f"{tmp_path}/m.db") as service:
        http = service.client
        error_of(await http.post("/v1/sessions", json={"metadata": {"x": "y" * 10_000_000}}), 413, "request_too_large")
        error_of(await http.post("/v1/sessions", json={"metadata": {"x": "y" * 100_000}}), 413, "metadata_too_large")
        error_of(await http.post("/v1/sessions", json={"metadata": ["x"]}), 400, "invalid_request")
        error_of(await http.post("/v1/sessions", json={"ttl_s": -1}), 400, "invalid_ttl")
        error_of(await http.get("/v1/sessions?limit=0"), 400, "invalid_request")
        error_of(await http.get("/v1/sessions?cursor=nonsense"), 400, "invalid_cursor")
        error_of(await http.get("/v1/sessions/a%2Fb"), 400, "invalid_session_id")
        error_of(await service.chat(session_id="s1", n=2, messages=[user("好")]), 400, "contradictory_parameters")
        two = await http.post(CHAT, json={"session_id": "s1", "messages": [user("好")]}, headers={"x-session-id": "s2"})
        error_of(two, 400, "contradictory_parameters")
        by_header = await http.post(CHAT, json={"messages": [user("好")]}, headers={"x-session-id": "s2"})
        assert by_header.json()["session"]["id"] == "s2"
        long = await service.chat(session_id="s2", messages=[user("长" * 4000)])
        error_of(long, 400, "context_length_exceeded")
        assert (await stored(service, "s2"))["turns"][-1]["turn"] == 1, "a refused request leaves no turn"


async def test_a_server_without_memory_says_so(in_process: Factory, pen: Pen) -> None:
    async with in_process(talker(pen)) as service:
        error_of(await service.chat(session_id="s1", messages=[user("好")]), 400, "unsupported_parameter")
        error_of(await service.client.get("/v1/sessions"), 400, "unsupported_parameter")
        assert (await service.chat(messages=[user("好")])).json().get("session") is None
