"""Whatever a client sends: a 4xx with OpenAI's envelope and a stable code, never a 500, and nothing lost for others."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from services.contract.chat_format import ChatFormat
from tests.fakes import FakeEngine, Pen
from tests.running import Factory, error_of

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "你好"}
ASK: dict[str, Any] = {"messages": [USER]}
TOOL = {"type": "function", "function": {"name": "dose", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def engine(chat_format: ChatFormat, pen: Pen) -> FakeEngine:
    return FakeEngine(chat_format, pen.thought("想", "答"))


def deep(levels: int, inner: str = "1") -> str:
    return '{"a":' * levels + inner + "}" * levels


INVALID, CONTRADICTORY = "invalid_request", "contradictory_parameters"
UNSUPPORTED, TOO_LONG = "unsupported_parameter", "context_length_exceeded"
JSON = {"type": "json_object"}


def says(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


# What is sent beside (or instead of) a good question; `...` leaves the field out.
BODIES: list[tuple[str, dict[str, Any], str, str | None]] = [
    ("unknown model", {"model": "gpt-4o"}, "model_not_found", "model"),
    ("empty model", {"model": ""}, "model_not_found", "model"),
    ("model that is a path", {"model": "../../etc/passwd"}, "model_not_found", "model"),
    ("model that is a number", {"model": 5}, INVALID, "model"),
    ("no messages", {"messages": ...}, INVALID, "messages"),
    ("messages null", {"messages": None}, INVALID, "messages"),
    ("messages empty", {"messages": []}, INVALID, "messages"),
    ("messages a string", {"messages": "你好"}, INVALID, "messages"),
    ("messages blank", {"messages": [{"role": "user", "content": "  "}]}, INVALID, "messages"),
    ("content parts empty", {"messages": [{"role": "user", "content": []}]}, INVALID, "messages"),
    ("a message that is a string", {"messages": ["你好"]}, INVALID, "messages[0]"),
    ("no role", {"messages": [{"content": "你好"}]}, INVALID, "messages[0].role"),
    ("unknown role", {"messages": [{"role": "doctor", "content": "你好"}]}, INVALID, "messages[0].role"),
    ("no content", {"messages": [USER, {"role": "user"}]}, INVALID, "messages[1].content"),
    ("content null", {"messages": [{"role": "user", "content": None}]}, INVALID, "messages[0].content"),
    ("content a number", {"messages": [{"role": "user", "content": 1}]}, INVALID, "messages[0].content"),
    ("part without type", {"messages": [{"role": "user", "content": [{"text": "a"}]}]}, INVALID, None),
    (
        "an image",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x"}}]}]},
        UNSUPPORTED,
        "messages[0].content[0].type",
    ),
    ("5,000 messages", {"messages": [USER] * 5000}, INVALID, "messages"),
    ("prompt over the context", says("头痛" * 5000), TOO_LONG, "messages"),
    ("prompt far over the context", says("x" * 2_000_000), TOO_LONG, "messages"),
    ("tools over the context", {"tools": [TOOL | {"x": "y" * 90_000}]}, TOO_LONG, "messages"),
    ("stream a string", {"stream": "true"}, INVALID, "stream"),
    ("stream a number", {"stream": 1}, INVALID, "stream"),
    ("temperature a string", {"temperature": "0.5"}, INVALID, "temperature"),
    ("temperature too high", {"temperature": 2.5}, INVALID, "temperature"),
    ("temperature negative", {"temperature": -0.1}, INVALID, "temperature"),
    ("top_p zero", {"top_p": 0}, INVALID, "top_p"),
    ("top_p over one", {"top_p": 1.1}, INVALID, "top_p"),
    ("top_k below -1", {"top_k": -2}, INVALID, "top_k"),
    ("min_p over one", {"min_p": 2}, INVALID, "min_p"),
    ("penalty too large", {"presence_penalty": 3}, INVALID, "presence_penalty"),
    ("repetition_penalty zero", {"repetition_penalty": 0}, INVALID, "repetition_penalty"),
    ("n zero", {"n": 0}, INVALID, "n"),
    ("n huge", {"n": 10**9}, INVALID, "n"),
    ("max_tokens zero", {"max_tokens": 0}, INVALID, "max_tokens"),
    ("max_tokens a fraction", {"max_tokens": 1.5}, INVALID, "max_tokens"),
    ("max_tokens a boolean", {"max_tokens": True}, INVALID, "max_tokens"),
    ("two different limits", {"max_tokens": 5, "max_completion_tokens": 6}, CONTRADICTORY, "max_completion_tokens"),
    ("min_tokens over max_tokens", {"min_tokens": 9, "max_tokens": 8}, INVALID, "min_tokens"),
    ("min_tokens over the context", {"min_tokens": 10**6}, INVALID, "min_tokens"),
    ("seed too large", {"seed": 2**63}, INVALID, "seed"),
    ("seed far too large", {"seed": 10**400}, INVALID, "seed"),
    ("stop empty", {"stop": ""}, INVALID, "stop"),
    ("stop with an empty one", {"stop": ["a", ""]}, INVALID, "stop"),
    ("stop too many", {"stop": ["a"] * 65}, INVALID, "stop"),
    ("stop too long", {"stop": "a" * 1025}, INVALID, "stop"),
    ("stop a number", {"stop": 1}, INVALID, "stop"),
    ("stop token beyond the vocabulary", {"stop_token_ids": [10**7]}, INVALID, "stop_token_ids"),
    ("stop token negative", {"stop_token_ids": [-1]}, INVALID, "stop_token_ids"),
    ("allowed tokens beyond the sampler's room", {"allowed_token_ids": [7] * 1025}, INVALID, "allowed_token_ids"),
    ("biases beyond the sampler's room", {"logit_bias": {str(n): 1.0 for n in range(1025)}}, INVALID, "logit_bias"),
    ("stop tokens beyond the sampler's room", {"stop_token_ids": [7] * 65}, INVALID, "stop_token_ids"),
    ("allowed tokens empty", {"allowed_token_ids": []}, INVALID, "allowed_token_ids"),
    ("bias on a word", {"logit_bias": {"肯定": -100}}, INVALID, "logit_bias"),
    ("bias on a superscript digit", {"logit_bias": {"²": 1}}, INVALID, "logit_bias"),
    ("bias beyond the vocabulary", {"logit_bias": {"9999999999": 1}}, INVALID, "logit_bias"),
    ("bias too strong", {"logit_bias": {"5": 101}}, INVALID, "logit_bias"),
    ("bias a list", {"logit_bias": [1]}, INVALID, "logit_bias"),
    ("top_logprobs alone", {"top_logprobs": 2}, CONTRADICTORY, "top_logprobs"),
    ("top_logprobs too many", {"logprobs": True, "top_logprobs": 21}, INVALID, "top_logprobs"),
    ("logprobs a number", {"logprobs": 5}, INVALID, "logprobs"),
    ("thinking on and off", {"enable_thinking": True, "think": False}, CONTRADICTORY, "think"),
    ("budget without thinking", {"enable_thinking": False, "thinking_budget": 9}, CONTRADICTORY, "thinking_budget"),
    ("reasoning wanted and not", {"return_reasoning": True, "include_reasoning": False}, CONTRADICTORY, "return_reasoning"),
    ("enable_thinking a string", {"enable_thinking": "yes"}, INVALID, "enable_thinking"),
    ("budget below -1", {"thinking_budget": -2}, INVALID, "thinking_budget"),
    ("effort unknown", {"reasoning_effort": "extreme"}, INVALID, "reasoning_effort"),
    ("effort a list", {"reasoning": {"effort": ["high"]}}, INVALID, "reasoning.effort"),
    ("template switch a number", {"chat_template_kwargs": {"thinking": 0}}, INVALID, "chat_template_kwargs.thinking"),
    ("tools not a list", {"tools": TOOL}, INVALID, "tools"),
    ("tool without a function", {"tools": [{"type": "function"}]}, INVALID, "tools[0].function"),
    ("tool of another type", {"tools": [TOOL | {"type": "retrieval"}]}, INVALID, "tools[0].type"),
    ("tool without a name", {"tools": [named("")]}, INVALID, "tools[0].function.name"),
    ("choice without tools", {"tool_choice": "required"}, INVALID, "tools"),
    ("choice unknown", {"tools": [TOOL], "tool_choice": "always"}, INVALID, "tool_choice"),
    ("choice of another tool", {"tools": [TOOL], "tool_choice": named("x")}, INVALID, "tool_choice"),
    ("call and format", {"tools": [TOOL], "tool_choice": "required", "response_format": JSON}, CONTRADICTORY, "tool_choice"),
    ("format unknown", {"response_format": {"type": "xml"}}, INVALID, "response_format.type"),
    ("format without a schema", {"response_format": {"type": "json_schema"}}, INVALID, "response_format.json_schema.schema"),
    ("two formats", {"response_format": JSON, "structured_outputs": {"regex": "a"}}, CONTRADICTORY, "response_format"),
    ("two constraints", {"structured_outputs": {"regex": "a", "choice": ["b"]}}, CONTRADICTORY, "structured_outputs"),
    ("choice list empty", {"structured_outputs": {"choice": []}}, INVALID, "structured_outputs.choice"),
    ("schema that is no JSON", {"structured_outputs": {"json": "{"}}, INVALID, "structured_outputs.json"),
    ("schema that is a list", {"structured_outputs": {"json": "[]"}}, INVALID, "structured_outputs.json"),
    ("schema nested too deep", {"structured_outputs": {"json": "[" * 100_000}}, INVALID, "structured_outputs.json"),
    ("schema that the engine refuses", {"structured_outputs": {"json": {"type": "nonsense"}}}, INVALID, None),
    ("regex that the engine refuses", {"structured_outputs": {"regex": "("}}, INVALID, None),
    ("include_usage a string", {"stream_options": {"include_usage": "yes"}}, INVALID, "stream_options.include_usage"),
    ("a session", {"session_id": "s1"}, UNSUPPORTED, "session_id"),
    ("prompt_logprobs", {"prompt_logprobs": 1}, UNSUPPORTED, "prompt_logprobs"),
    ("echo", {"echo": True}, UNSUPPORTED, "echo"),
    ("continue_final_message", {"continue_final_message": True}, UNSUPPORTED, "continue_final_message"),
    ("add_generation_prompt off", {"add_generation_prompt": False}, UNSUPPORTED, "add_generation_prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "code", "param"), [pytest.param(*row[1:], id=row[0]) for row in BODIES])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_wrong_request_is_refused_with_its_code_and_field(
    engine, in_process: Factory, body, code, param, stream
) -> None:
    body = {name: value for name, value in (ASK | {"stream": stream} | body).items() if value is not ...}
    async with in_process(engine) as running:
        response = await running.chat(**body)
        error = error_of(response, 404 if code == "model_not_found" else 400, code)
        assert error["type"] == "invalid_request_error"
        if param is not None:
            assert error["param"] == param
        assert len(error["message"]) < 1000
        assert running.metric("medthink_errors_total", code=code) == 1
        assert running.service.admission.active == 0
    assert engine.asked == []


def raw(extra: str = "", content: str = '"a"') -> bytes:
    """A question as bytes, where `json.dumps` would not write what is meant."""
    return f'{{"messages": [{{"role": "user", "content": {content}}}]{extra}}}'.encode()


def tool(parameters: str, name: str = "f") -> bytes:
    return raw(f', "tools": [{{"type": "function", "function": {{"name": "{name}", "parameters": {parameters}}}}}]')


def called(arguments: str) -> bytes:
    call = f'{{"role": "assistant", "tool_calls": [{{"function": {{"name": "f", "arguments": {arguments}}}}}]}}'
    return f'{{"messages": [{{"role": "user", "content": "a"}}, {call}, {{"role": "tool", "content": "b"}}]}}'.encode()


RAW: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "invalid_json"),
    ("half an object", b'{"messages": [', "invalid_json"),
    ("a trailing comma", b'{"messages": [],}', "invalid_json"),
    ("single quotes", b"{'messages': []}", "invalid_json"),
    ("a list", b"[]", INVALID),
    ("null", b"null", INVALID),
    ("a number", b"1", INVALID),
    ("not UTF-8", b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', "invalid_json"),
    ("UTF-16", json.dumps(ASK).encode("utf-16"), "invalid_json"),
    ("a lone surrogate", raw(content='"\\ud800"'), "invalid_json"),
    ("a lone surrogate as a key", raw(', "\\udfff": 1'), "invalid_json"),
    ("1 MB of nested objects", deep(150_000).encode(), "invalid_json"),
    ("1 MB of nested lists", b"[" * 1_000_000, "invalid_json"),
    ("nested content", raw(content=deep(100_000)), "invalid_json"),
    ("temperature NaN", raw(', "temperature": NaN'), INVALID),
    ("top_p Infinity", raw(', "top_p": Infinity'), INVALID),
    ("bias -Infinity", raw(', "logit_bias": {"1": -Infinity}'), INVALID),
    ("a number of 1e999", raw(', "temperature": 1e999'), INVALID),
    ("an integer of 5,000 digits", raw(f', "seed": {"9" * 5000}'), "invalid_json"),
    ("a schema with an integer of 5,000 digits", tool(f'{{"maximum": {"9" * 5000}}}'), "invalid_json"),
]


@pytest.mark.parametrize(("body", "code"), [pytest.param(*row[1:], id=row[0]) for row in RAW])
async def test_a_body_that_is_no_request_is_refused(engine, in_process: Factory, body, code) -> None:
    async with in_process(engine) as running:
        response = await running.client.post(CHAT, content=body, headers={"content-type": "application/json"})
        error = error_of(response, 400, code)
    assert len(error["message"]) < 1000
    assert engine.asked == []


ODD_BUT_FINE: list[tuple[str, bytes]] = [
    ("NUL in text", raw(content='"a\\u0000b"')),
    ("every control character", json.dumps(says("".join(map(chr, range(32))) + "x")).encode()),
    ("noncharacters and unassigned", json.dumps(says("\ufffe\uffff\U000e0001\U0010ffff")).encode()),
    ("a byte order mark inside", json.dumps(says("\ufeff头痛")).encode()),
    ("NUL in a tool's name", tool("{}", name="a\\u0000")),
    ("NaN in an unknown field", raw(', "metadata": {"x": NaN}')),
    ("NaN in a tool's schema", tool('{"a": NaN}')),
    ("a huge integer in a tool's schema", tool(f'{{"maximum": {"9" * 400}}}')),
    ("nested unknown field", raw(f', "metadata": {deep(150)}')),
    ("nested tool schema", tool(deep(150))),
    ("doubled messages", b'{"messages": 5, ' + raw()[1:]),
    ("arguments that are no JSON", called('"{"')),
    ("an argument NaN", called('{"x": NaN}')),
    ("a tool result first", json.dumps({"messages": [{"role": "tool", "content": "b"}]}).encode()),
    ("only a system message", json.dumps({"messages": [{"role": "system", "content": "b"}]}).encode()),
    ("half a thought last", json.dumps({"messages": [USER, {"role": "assistant", "content": "<think>b"}]}).encode()),
]
FORCED = [
    (f"{name}, forced", raw[:-1] + b', "tool_choice": "required"}') for name, raw in ODD_BUT_FINE if b'"tools"' in raw
]


@pytest.mark.parametrize("body", [pytest.param(row[1], id=row[0]) for row in [*ODD_BUT_FINE, *FORCED]])
async def test_odd_input_is_answered_all_the_same(engine, in_process: Factory, body) -> None:
    async with in_process(engine) as running:
        response = await running.client.post(CHAT, content=body)
        assert response.status_code == 200, response.text


async def test_a_body_over_the_limit_is_refused_by_its_declared_size(engine, in_process: Factory) -> None:
    async with in_process(engine, max_body_bytes=2048) as running:
        response = await running.chat(messages=[{"role": "user", "content": "x" * 3000}])
        error_of(response, 413, "request_too_large")
        assert running.metric("medthink_errors_total", code="request_too_large") == 1


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "*/*"]
)
async def test_another_content_type_is_refused(engine, in_process: Factory, kind) -> None:
    async with in_process(engine) as running:
        response = await running.client.post(CHAT, content=json.dumps(ASK), headers={"content-type": kind})
        error_of(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"])
async def test_every_kind_of_json_is_taken(engine, in_process: Factory, kind) -> None:
    async with in_process(engine) as running:
        response = await running.client.post(CHAT, content=json.dumps(ASK), headers={"content-type": kind})
        assert response.status_code == 200


async def test_json_without_a_content_type_is_taken(engine, in_process: Factory) -> None:
    async with in_process(engine) as running:
        assert (await running.client.post(CHAT, content=json.dumps(ASK))).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("PUT", CHAT, "POST"),
        ("DELETE", "/v1/models", "GET"),
        ("POST", "/livez", "GET"),
        ("BREW", CHAT, "POST"),
    ],
)
async def test_a_wrong_method_names_the_right_one(engine, in_process: Factory, method, path, allowed) -> None:
    async with in_process(engine) as running:
        response = await running.client.request(method, path)
        error_of(response, 405, "method_not_allowed")
        assert response.headers["allow"] == allowed
        assert running.metric("medthink_errors_total", code="method_not_allowed") == 1


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/v2/chat/completions", "/%00", "/..%2f..%2fetc/passwd", "/%ff", "/" + "a" * 5000]
)
async def test_an_unknown_path_is_not_found(engine, in_process: Factory, path) -> None:
    async with in_process(engine) as running:
        error = error_of(await running.client.get(path), 404, "not_found")
    assert len(error["message"]) < 400


async def test_a_bad_request_costs_nobody_else_anything(engine, in_process: Factory) -> None:
    async with in_process(engine) as running:
        good = [running.chat(**ASK) for _ in range(5)]
        bad = [running.chat(**ASK, structured_outputs={"regex": "("}) for _ in range(5)]
        responses = await asyncio.gather(*[r for pair in zip(good, bad, strict=True) for r in pair])
        assert [r.status_code for r in responses] == [200, 400] * 5
    assert engine.running == set()


async def test_a_megabyte_of_nesting_is_refused_in_no_time(engine, in_process: Factory) -> None:
    async with in_process(engine) as running:
        async with asyncio.timeout(1):
            response = await running.client.post(CHAT, content=deep(170_000).encode())
        error_of(response, 400, "invalid_json")
