"""One turn: the thought within its budget, then the answer, whatever the engine's deltas look like."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.api.engine.base import BadSampling, EngineDied, Grammar, Sampling
from services.api.events import Answer, Event, Finished, Reasoning, ReasoningDone, ToolCallDelta
from services.api.thinking.options import ThinkingOptions
from services.api.thinking.token_text import TokenTexts
from services.api.tools import force_call
from services.api.turn import TurnRequest, Turns, reasoning_cap
from services.contract.chat_format import (
    END_OF_TEXT,
    END_THINK,
    END_TOOL_CALL,
    IM_END,
    THINK,
    TOOL_CALL,
    ChatFormat,
    Message,
)
from tests.fakes import FakeEngine, Pen, joined
from tests.running import until

QUESTION = [Message(role="user", content="头痛伴呕吐怎么办？")]
TOOLS = [
    {"type": "function", "function": {"name": "dose", "parameters": {"type": "object", "properties": {"drug": {}}}}},
    {"type": "function", "function": {"name": "now"}},
]


def request_of(chat_format: ChatFormat, max_tokens: int = 200, **changes: Any) -> TurnRequest:
    sampling = Sampling(max_tokens=max_tokens, **changes.pop("sampling", {}))
    return TurnRequest("turn", chat_format.write(QUESTION), sampling, **changes)


async def run(engine: FakeEngine, texts: TokenTexts, request: TurnRequest, reserve: int = 16) -> list[Event]:
    """Events of a turn with one choice, neighbouring texts joined."""
    if engine.state != "ready":
        await engine.start()
    turns = Turns(engine, engine.chat_format, texts, reserve)
    return joined([event async for _, event in turns.run(request)])


def reasoning(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, Reasoning))


def answer(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, Answer))


def finished(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    assert not any(isinstance(e, Finished) for e in events[:-1])
    return events[-1]


async def test_a_thought_and_its_answer_are_one_engine_request(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.thought("想", "答"))
    events = await run(engine, texts, request_of(chat_format))
    assert events[:-1] == [Reasoning("想"), ReasoningDone(), Answer("答")]
    end = finished(events)
    assert (end.reason, end.stop_reason, end.thinking_truncated) == ("stop", None, False)
    assert len(engine.requests) == 1
    assert engine.requests[0].prompt_ids == chat_format.write_prompt(QUESTION)
    assert engine.aborted == []


async def test_usage_counts_what_the_engine_wrote(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.thought("想", "答"))
    usage = finished(await run(engine, texts, request_of(chat_format))).usage
    assert usage.prompt_tokens == len(chat_format.write_prompt(QUESTION))
    assert usage.completion_tokens == len(pen.thought("想", "答"))
    assert usage.reasoning_tokens == len(pen.write(THINK, "\n想\n", END_THINK))
    assert usage.cached_tokens == 7


async def test_with_thinking_off_the_prompt_holds_the_empty_thought(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.thought("想", "答"))
    request = request_of(chat_format, thinking=ThinkingOptions(enabled=False))
    events = await run(engine, texts, request)
    assert engine.requests[0].prompt_ids == chat_format.write_prompt(QUESTION, enable_thinking=False)
    assert (reasoning(events), answer(events)) == ("", "答")
    assert finished(events).usage.reasoning_tokens == 0
    assert finished(events).thinking_truncated is False


# The budget

LONG_THOUGHT = "患者头痛伴呕吐、畏光，需要鉴别偏头痛、蛛网膜下腔出血与脑膜炎，先看红旗征。" * 3


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("budget", [1, 2, 5, 11])
async def test_the_budget_is_kept_exactly_and_the_answer_still_comes(
    pen: Pen, chat_format, texts, size, budget
) -> None:
    engine = FakeEngine(chat_format, pen.thought(LONG_THOUGHT, "答"), sizes=[size])
    events = await run(engine, texts, request_of(chat_format, thinking=ThinkingOptions(budget=budget)))
    end = finished(events)
    assert end.usage.reasoning_tokens == budget
    assert end.thinking_truncated is True
    assert LONG_THOUGHT.startswith(reasoning(events))
    assert answer(events) == "答"
    assert end.reason == "stop"


async def test_the_answer_goes_on_from_the_thought_as_far_as_it_got(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.thought(LONG_THOUGHT, "答"), sizes=[4])
    await run(engine, texts, request_of(chat_format, thinking=ThinkingOptions(budget=6)))
    first, second = engine.requests
    written = pen.thought(LONG_THOUGHT, "")[:6]
    closing = pen.write("\n", END_THINK, "\n\n")
    assert second.prompt_ids == [*first.prompt_ids, *written, *closing]
    assert second.sampling.max_tokens == first.sampling.max_tokens - 6
    assert first.request_id != second.request_id
    assert engine.aborted == [first.request_id]


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_a_thought_that_ends_exactly_in_time_is_left_alone(pen: Pen, chat_format, texts, size) -> None:
    thought = pen.write(THINK, "\n想\n")
    engine = FakeEngine(chat_format, pen.thought("想", "答"), sizes=[size])
    events = await run(engine, texts, request_of(chat_format, thinking=ThinkingOptions(budget=len(thought))))
    assert finished(events).thinking_truncated is False
    assert len(engine.requests) == 1
    assert (reasoning(events), answer(events)) == ("想", "答")


async def test_a_budget_of_zero_answers_without_a_thought(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.thought("想", "答"))
    events = await run(engine, texts, request_of(chat_format, thinking=ThinkingOptions(budget=0)))
    assert (reasoning(events), answer(events)) == ("", "答")
    assert engine.requests[0].prompt_ids == chat_format.write_prompt(QUESTION, enable_thinking=False)
    assert finished(events).thinking_truncated is True


# Replies of any shape: tags where they do not belong, ends in mid-thought, calls without tools.
SHAPES = st.lists(
    st.sampled_from(
        [THINK, END_THINK, IM_END, END_OF_TEXT, TOOL_CALL, END_TOOL_CALL, "想想看", "\n", "答👩‍⚕️。", "停",
         '{"name": "now", "arguments": {}}']
    ),
    min_size=1,
    max_size=10,
)  # fmt: skip


@given(
    parts=SHAPES,
    thinks=st.booleans(),
    budget=st.none() | st.integers(0, 12),
    max_tokens=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    apart=st.booleans(),
    options=st.fixed_dictionaries(
        {},
        optional={
            "offers_tools": st.just(True),
            "stop": st.sampled_from([("停",), ("。", "想看"), ("看\n",)]),
            "include_stop": st.booleans(),
        },
    ),
    stop_token=st.sampled_from([None, "停", "看"]),
    ignore_eos=st.booleans(),
    constrained=st.booleans(),
    logprobs=st.booleans(),
)
@example([THINK, TOOL_CALL, "想想看" * 9, IM_END], True, 3, 40, [20], True, {}, None, False, False, False)
@example([THINK, "想想看", "停", IM_END], True, 2, 40, [20], True, {}, "停", False, False, False)
@example([THINK, "想想看", IM_END, "想想看", IM_END], True, 2, 40, [20], True, {}, None, True, False, False)
@example(["答", "停", "答" * 9], False, None, 40, [20], True, {"stop": ("停",)}, None, False, False, True)
async def test_no_chunking_changes_a_turn(
    pen: Pen, chat_format, texts, parts, thinks, budget, max_tokens, sizes, apart, options, stop_token, ignore_eos,
    constrained, logprobs,
) -> None:  # fmt: skip
    sampling: dict[str, Any] = {"ignore_eos": ignore_eos, "logprobs": 1 if logprobs else None}
    if stop_token:
        sampling["stop_token_ids"] = (pen.text(stop_token)[0],)
    if constrained:
        sampling["grammar"] = Grammar("json_object")
    thinking = ThinkingOptions(enabled=thinks, budget=budget)
    request = request_of(chat_format, max_tokens, sampling=sampling, thinking=thinking, **options)
    reply, spoken = pen.write(*parts), pen.answer("答毕")
    one = FakeEngine(chat_format, reply, spoken)
    expected = without_call_ids(await run(one, texts, request))
    other = FakeEngine(chat_format, reply, spoken, sizes=sizes, merge_finish=not apart)
    assert without_call_ids(await run(other, texts, request)) == expected
    assert [r.prompt_ids for r in other.requests] == [r.prompt_ids for r in one.requests]
    end = finished(expected)
    assert end.usage.completion_tokens <= max_tokens
    # The closing tag is not counted against the budget: a thought that closes itself in time is left alone.
    assert end.usage.reasoning_tokens <= reasoning_cap(max_tokens, budget, 16) + 1
    assert one.running | other.running == set()


def without_call_ids(events: list[Event]) -> list[Event]:
    return [dataclasses.replace(e, call_id="id") if isinstance(e, ToolCallDelta) and e.call_id else e for e in events]


# What closes a thought


@pytest.mark.parametrize("end", [IM_END, END_OF_TEXT])
@pytest.mark.parametrize("size", [1, 100])
async def test_a_model_that_ends_its_turn_inside_the_thought_still_owes_the_answer(
    pen: Pen, chat_format, texts, end, size
) -> None:
    engine = FakeEngine(chat_format, pen.write(THINK, "\n想", end), pen.answer("答"), sizes=[size])
    events = await run(engine, texts, request_of(chat_format))
    assert events[:-1] == [Reasoning("想"), ReasoningDone(truncated=True), Answer("答")]
    assert finished(events).reason == "stop"
    assert engine.requests[1].prompt_ids[-1 - len(pen.text("\n\n"))] == chat_format.control_ids[END_THINK]
    assert chat_format.control_ids[end] not in engine.requests[1].prompt_ids[len(engine.requests[0].prompt_ids) :]


async def test_a_model_that_ends_at_once_is_asked_again_without_a_thought(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.write(IM_END), pen.answer("答"))
    events = await run(engine, texts, request_of(chat_format))
    assert answer(events) == "答"
    assert engine.requests[1].prompt_ids == chat_format.write_prompt(QUESTION, enable_thinking=False)
    assert finished(events).thinking_truncated is False


async def test_a_model_that_does_not_think_just_answers(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.answer("直接答"))
    events = await run(engine, texts, request_of(chat_format, thinking=ThinkingOptions(budget=1)))
    assert events[:-1] == [Answer("直接答")]
    assert len(engine.requests) == 1


async def test_a_stop_token_of_the_client_inside_the_thought_ends_the_turn(pen: Pen, chat_format, texts) -> None:
    stop = pen.text("停")[0]
    engine = FakeEngine(chat_format, [*pen.write(THINK, "\n想"), stop, *pen.answer("答")])
    events = await run(engine, texts, request_of(chat_format, sampling={"stop_token_ids": (stop,)}))
    assert len(engine.requests) == 1
    assert finished(events).reason == "stop"
    assert finished(events).stop_reason == stop


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("size", [1, 100])
async def test_room_for_the_answer_is_kept_however_little_there_is(
    pen: Pen, chat_format, texts, max_tokens, size
) -> None:
    engine = FakeEngine(chat_format, pen.write(THINK, LONG_THOUGHT * 9), pen.write("答" * 99), sizes=[size])
    events = await run(engine, texts, request_of(chat_format, max_tokens))
    end = finished(events)
    reserve = max(1, min(16, max_tokens // 2))
    assert end.usage.completion_tokens == max_tokens
    assert end.usage.reasoning_tokens == max_tokens - reserve
    assert answer(events).startswith("答" if len(pen.text("答")) <= reserve else "")
    assert end.reason == "length"
    assert end.thinking_truncated is True


@pytest.mark.parametrize(
    ("max_tokens", "budget", "reserve", "cap"),
    [(1, None, 512, 0), (2, None, 512, 1), (10, None, 512, 5), (100, None, 10, 90), (100, 30, 10, 30), (100, 95, 10, 90),
     (100, 0, 10, 0), (4096, None, 512, 3584)],
)  # fmt: skip
def test_the_cap_of_a_thought(max_tokens, budget, reserve, cap) -> None:
    assert reasoning_cap(max_tokens, budget, reserve) == cap


async def test_min_tokens_holds_for_thought_and_answer_together(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.thought(LONG_THOUGHT, "答"), pen.answer("答"))
    request = request_of(chat_format, sampling={"min_tokens": 40}, thinking=ThinkingOptions(budget=10))
    events = await run(engine, texts, request)
    assert engine.requests[0].sampling.min_tokens == 40
    assert engine.requests[1].sampling.min_tokens == 30
    assert finished(events).usage.completion_tokens >= 40


# Stops


async def test_a_stop_string_ends_the_answer_and_the_engine_request(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.write(THINK, "\n想。\n", END_THINK, "\n\n", "一。二。", "三" * 50))
    events = await run(engine, texts, request_of(chat_format, stop=("。",)))
    assert (reasoning(events), answer(events)) == ("想。", "一")
    assert (finished(events).reason, finished(events).stop_reason) == ("stop", "。")
    assert engine.aborted == ["turn-0-1"]


async def test_the_stop_string_itself_is_shown_on_request(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.thought("想", "一。二。"))
    assert answer(await run(engine, texts, request_of(chat_format, stop=("。",), include_stop=True))) == "一。"


async def test_half_a_stop_string_at_the_end_is_shown(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.thought("想", "一结"))
    assert answer(await run(engine, texts, request_of(chat_format, stop=("结束",)))) == "一结"


async def test_an_answer_cut_by_max_tokens_says_length(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.thought("想", "答" * 100))
    end = finished(await run(engine, texts, request_of(chat_format, 30)))
    assert (end.reason, end.usage.completion_tokens) == ("length", 30)


async def test_a_stop_token_of_the_client_is_named(pen: Pen, chat_format, texts) -> None:
    stop = pen.text("停")[0]
    engine = FakeEngine(chat_format, [*pen.thought("想", "答")[:-1], stop])
    end = finished(await run(engine, texts, request_of(chat_format, sampling={"stop_token_ids": (stop,)})))
    assert (end.reason, end.stop_reason) == ("stop", stop)


async def test_the_models_own_end_is_no_stop_reason(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, [*pen.thought("想", "答")[:-1], *pen.ids(END_OF_TEXT)])
    assert finished(await run(engine, texts, request_of(chat_format))).stop_reason is None


# Constraints and tools

JSON_SCHEMA = Grammar("json_schema", {"type": "object"})


@pytest.mark.parametrize("size", [1, 4, 100])
async def test_a_grammar_binds_the_answer_and_never_the_thought(pen: Pen, chat_format, texts, size) -> None:
    engine = FakeEngine(chat_format, pen.thought("想", "不受约束的答案"), pen.answer('{"a":1}'), sizes=[size])
    events = await run(engine, texts, request_of(chat_format, sampling={"grammar": JSON_SCHEMA}))
    first, second = engine.requests
    assert (first.sampling.grammar, second.sampling.grammar) == (None, JSON_SCHEMA)
    written = pen.write(THINK, "\n想\n", END_THINK)
    assert second.prompt_ids == [*first.prompt_ids, *written, *pen.text("\n\n")]
    assert (reasoning(events), answer(events)) == ("想", '{"a":1}')
    assert finished(events).thinking_truncated is False
    assert finished(events).reason == "stop"


async def test_a_grammar_with_thinking_off_is_one_request(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.answer("{}"))
    request = request_of(chat_format, sampling={"grammar": JSON_SCHEMA}, thinking=ThinkingOptions(enabled=False))
    assert answer(await run(engine, texts, request)) == "{}"
    assert [r.sampling.grammar for r in engine.requests] == [JSON_SCHEMA]


@pytest.mark.parametrize("size", [1, 100])
async def test_an_unconstrained_answer_without_a_thought_begins_again_constrained(
    pen: Pen, chat_format, texts, size
) -> None:
    def reply(request):
        return pen.answer("{}" if request.sampling.grammar else "没有思考的答案")

    engine = FakeEngine(chat_format, reply, sizes=[size])
    events = await run(engine, texts, request_of(chat_format, sampling={"grammar": JSON_SCHEMA}))
    assert events[:-1] == [Answer("{}")]
    assert engine.requests[1].prompt_ids == chat_format.write_prompt(QUESTION, enable_thinking=False)
    assert finished(events).usage.completion_tokens == len(pen.answer("{}"))


async def test_a_broken_grammar_is_refused_before_the_thought(chat_format, texts, pen: Pen) -> None:
    engine = FakeEngine(chat_format, pen.thought("想", "答"))
    await engine.start()
    turns = Turns(engine, chat_format, texts, 16)
    with pytest.raises(BadSampling, match="regex is broken"):
        await turns.check(request_of(chat_format, sampling={"grammar": Grammar("regex", "(")}))
    await turns.check(request_of(chat_format))
    assert engine.requests == []


def forced(name: str | None, parallel: bool = True, **changes: Any) -> dict[str, Any]:
    return {"forced_call": force_call(TOOLS, name, parallel), "parallel_tool_calls": parallel, **changes}


async def test_a_named_call_is_constrained_to_its_parameters_and_becomes_a_tool_call(
    pen: Pen, chat_format, texts
) -> None:
    engine = FakeEngine(chat_format, pen.thought("要查", "无"), pen.answer('{"drug": "华法林"}'))
    events = await run(engine, texts, request_of(chat_format, **forced("dose")))
    assert engine.requests[1].sampling.grammar == Grammar("json_schema", TOOLS[0]["function"]["parameters"])
    name, arguments = [e for e in events if isinstance(e, ToolCallDelta)]
    assert (name.name, arguments.arguments, answer(events)) == ("dose", '{"drug": "华法林"}', "")
    assert finished(events).reason == "stop"  # as OpenAI says it for a call that was forced by name


async def test_required_calls_are_a_constrained_list(pen: Pen, chat_format, texts) -> None:
    written = [{"name": "dose", "arguments": {"drug": "华法林"}}, {"name": "now", "arguments": {}}]
    engine = FakeEngine(chat_format, pen.thought("要查", "无"), pen.answer(json.dumps(written)), sizes=[3])
    events = await run(engine, texts, request_of(chat_format, **forced(None)))
    schema = engine.requests[1].sampling.grammar.value
    assert (schema["type"], schema["minItems"], "maxItems" in schema) == ("array", 1, False)
    calls = [e for e in events if isinstance(e, ToolCallDelta)]
    assert [c.name for c in calls if c.name] == ["dose", "now"]
    assert [json.loads(c.arguments) for c in calls if not c.name] == [{"drug": "华法林"}, {}]
    assert len({c.call_id for c in calls if c.call_id}) == 2
    assert finished(events).reason == "tool_calls"


def test_one_call_at_most_without_parallel_calls() -> None:
    assert force_call(TOOLS, None, parallel=False).grammar.value["maxItems"] == 1


def test_definitions_of_parameters_move_to_where_their_references_look() -> None:
    parameters = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    schema = force_call(tools, None, True).grammar.value
    assert schema["$defs"] == {"A": {"type": "string"}}
    assert "$defs" not in schema["items"]["anyOf"][0]["properties"]["arguments"]
    assert "$defs" in parameters, "the client's own tool was changed"


async def test_a_forced_call_that_is_cut_off_is_not_lost(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.answer('[{"name": "dose", "argum'))
    thinking = ThinkingOptions(enabled=False)
    events = await run(engine, texts, request_of(chat_format, 12, **forced(None, thinking=thinking)))
    assert answer(events).startswith("[")
    assert '[{"name": "dose", "argum'.startswith(answer(events))
    assert finished(events).reason == "length"


async def test_free_calls_finish_with_tool_calls(pen: Pen, chat_format, texts) -> None:
    call = [TOOL_CALL, '\n{"name": "now", "arguments": {}}\n', END_TOOL_CALL]
    engine = FakeEngine(
        chat_format, pen.write(THINK, "\n想\n", END_THINK, "\n\n", *call, "\n", *call, IM_END), sizes=[5]
    )
    events = await run(engine, texts, request_of(chat_format, offers_tools=True))
    assert [e.name for e in events if isinstance(e, ToolCallDelta) and e.name] == ["now", "now"]
    assert finished(events).reason == "tool_calls"


async def test_without_parallel_calls_the_second_one_ends_the_turn(pen: Pen, chat_format, texts) -> None:
    call = [TOOL_CALL, '\n{"name": "now", "arguments": {}}\n', END_TOOL_CALL]
    engine = FakeEngine(chat_format, pen.write(*call, "\n", *call, "后" * 50))
    request = request_of(
        chat_format, offers_tools=True, parallel_tool_calls=False, thinking=ThinkingOptions(enabled=False)
    )
    events = await run(engine, texts, request)
    assert [e.name for e in events if isinstance(e, ToolCallDelta) and e.name] == ["now"]
    assert finished(events).reason == "tool_calls"
    assert engine.aborted


# Several choices


async def test_choices_run_beside_each_other_and_each_finishes(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.thought("想" * 5, "答" * 5))
    await engine.start()
    turns = Turns(engine, chat_format, texts, 16)
    events = [pair async for pair in turns.run(request_of(chat_format, choices=3, sampling={"seed": 11}))]
    assert engine.most_running == 3
    order = [index for index, _ in events]
    assert order != sorted(order), "one choice waited for another"
    for choice in range(3):
        own = joined([e for i, e in events if i == choice])
        assert own[:-1] == [Reasoning("想" * 5), ReasoningDone(), Answer("答" * 5)]
        finished(own)
    assert sorted(r.sampling.seed for r in engine.requests) == [11, 12, 13]
    assert len({r.request_id for r in engine.requests}) == 3


async def test_choices_without_a_seed_have_none(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.thought("想", "答"))
    await engine.start()
    async for _ in Turns(engine, chat_format, texts, 16).run(request_of(chat_format, choices=2)):
        pass
    assert {r.sampling.seed for r in engine.requests} == {None}


async def test_the_largest_seed_stays_a_seed_for_every_choice(pen: Pen, chat_format, texts) -> None:
    """vLLM takes signed 64 bits: one more is refused."""
    engine = FakeEngine(chat_format, pen.thought("想", "答"))
    await engine.start()
    request = request_of(chat_format, choices=3, sampling={"seed": 2**63 - 1})
    async for _ in Turns(engine, chat_format, texts, 16).run(request):
        pass
    seeds = [r.sampling.seed for r in engine.requests]
    assert len(set(seeds)) == 3
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)


# Ends that nobody planned


@pytest.mark.parametrize("choices", [1, 3])
async def test_closing_a_turn_aborts_everything_in_the_engine(pen: Pen, chat_format, texts, choices) -> None:
    engine = FakeEngine(chat_format, pen.write(THINK, "想" * 999), delay_s=0.001)
    await engine.start()
    turn = Turns(engine, chat_format, texts, 16).run(request_of(chat_format, 500, choices=choices))
    await anext(turn)
    await turn.aclose()
    assert engine.running == set()
    assert len(engine.aborted) == choices


@pytest.mark.parametrize("choices", [1, 3])
async def test_a_cancelled_consumer_aborts_everything_in_the_engine(pen: Pen, chat_format, texts, choices) -> None:
    engine = FakeEngine(chat_format, pen.write(THINK, "想" * 999), delay_s=0.001)
    await engine.start()

    async def consume() -> None:
        async with contextlib.aclosing(
            Turns(engine, chat_format, texts, 16).run(request_of(chat_format, 500, choices=choices))
        ) as turn:
            async for _ in turn:
                pass

    task = asyncio.create_task(consume())
    await until(lambda: len(engine.running) == choices)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.running == set()
    assert len(engine.aborted) == choices


@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("dies_after", [0, 3, 12])
async def test_an_engine_that_dies_ends_the_turn_with_its_death(
    pen: Pen, chat_format, texts, choices, dies_after
) -> None:
    engine = FakeEngine(chat_format, pen.thought("想想想", "答" * 20), dies_after=dies_after)
    await engine.start()
    seen = []

    async def consume() -> None:
        async for pair in Turns(engine, chat_format, texts, 16).run(request_of(chat_format, choices=choices)):
            seen.append(pair)

    with pytest.raises(EngineDied):
        await consume()
    assert not any(isinstance(event, Finished) for _, event in seen)
    assert engine.running == set()


async def test_an_engine_error_of_any_kind_reaches_the_caller(pen: Pen, chat_format, texts) -> None:
    engine = FakeEngine(chat_format, pen.thought("想", "答"))
    engine.raised = RuntimeError("kernel panic")
    await engine.start()
    with pytest.raises(RuntimeError, match="kernel panic"):
        async for _ in Turns(engine, chat_format, texts, 16).run(request_of(chat_format, choices=2)):
            pass
