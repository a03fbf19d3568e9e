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


BODIES: list[tuple[str, dict[str, Any], str, str | None]] = [
    ("unknown model", ASK | {"model": "gpt-4o"}, "model_not_found", "model"),
    ("empty model", ASK | {"model": ""}, "model_not_found", "model"),
    ("model that is a path", ASK | {"model": "../../etc/passwd"}, "model_not_found", "model"),
    ("model that is a number", ASK | {"model": 5}, "invalid_request", "model"),
    ("no messages", {}, "invalid_request", "messages"),
    ("messages null", {"messages": None}, "invalid_request", "messages"),
    ("messages empty", {"messages": []}, "invalid_request", "messages"),
    ("messages a string", {"messages": "你好"}, "invalid_request", "messages"),
    ("messages blank", {"messages": [{"role": "user", "content": "  "}]}, "invalid_request", "messages"),
    ("content parts empty", {"messages": [{"role": "user", "content": []}]}, "invalid_request", "messages"),
    ("a message that is a string", {"messages": ["你好"]}, "invalid_request", "messages[0]"),
    ("no role", {"messages": [{"content": "你好"}]}, "invalid_request", "messages[0].role"),
    ("unknown role", {"messages": [{"role": "doctor", "content": "你好"}]}, "invalid_request", "messages[0].role"),
    ("no content", {"messages": [USER, {"role": "user"}]}, "invalid_request", "messages[1].content"),
    ("content null", {"messages": [{"role": "user", "content": None}]}, "invalid_request", "messages[0].content"),
    ("content a number", {"messages": [{"role": "user", "content": 1}]}, "invalid_request", "messages[0].content"),
    ("part without type", {"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "invalid_request", None),
    (
        "an image",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x"}}]}]},
        "unsupported_parameter",
        "messages[0].content[0].type",
    ),
    ("5,000 messages", {"messages": [USER] * 5000}, "invalid_request", "messages"),
    ("prompt over the context", {"messages": [{"role": "user", "content": "头痛" * 5000}]}, "context_length_exceeded", "messages"),
    ("prompt far over the context", {"messages": [{"role": "user", "content": "x" * 2_000_000}]}, "context_length_exceeded", "messages"),
    ("tools over the context", ASK | {"tools": [TOOL | {"x": "y" * 90_000}]}, "context_length_exceeded", "messages"),
    ("stream a string", ASK | {"stream": "true"}, "invalid_request", "stream"),
    ("stream a number", ASK | {"stream": 1}, "invalid_request", "stream"),
    ("temperature a string", ASK | {"temperature": "0.5"}, "invalid_request", "temperature"),
    ("temperature too high", ASK | {"temperature": 2.5}, "invalid_request", "temperature"),
    ("temperature negative", ASK | {"temperature": -0.1}, "invalid_request", "temperature"),
    ("top_p zero", ASK | {"top_p": 0}, "invalid_request", "top_p"),
    ("top_p over one", ASK | {"top_p": 1.1}, "invalid_request", "top_p"),
    ("top_k below -1", ASK | {"top_k": -2}, "invalid_request", "top_k"),
    ("min_p over one", ASK | {"min_p": 2}, "invalid_request", "min_p"),
    ("penalty too large", ASK | {"presence_penalty": 3}, "invalid_request", "presence_penalty"),
    ("repetition_penalty zero", ASK | {"repetition_penalty": 0}, "invalid_request", "repetition_penalty"),
    ("n zero", ASK | {"n": 0}, "invalid_request", "n"),
    ("n huge", ASK | {"n": 10**9}, "invalid_request", "n"),
    ("max_tokens zero", ASK | {"max_tokens": 0}, "invalid_request", "max_tokens"),
    ("max_tokens a fraction", ASK | {"max_tokens": 1.5}, "invalid_request", "max_tokens"),
    ("max_tokens a boolean", ASK | {"max_tokens": True}, "invalid_request", "max_tokens"),
    ("two different limits", ASK | {"max_tokens": 5, "max_completion_tokens": 6}, "contradictory_parameters", "max_completion_tokens"),
    ("min_tokens over max_tokens", ASK | {"min_tokens": 9, "max_tokens": 8}, "invalid_request", "min_tokens"),
    ("min_tokens over the context", ASK | {"min_tokens": 10**6}, "invalid_request", "min_tokens"),
    ("seed too large", ASK | {"seed": 2**63}, "invalid_request", "seed"),
    ("seed far too large", ASK | {"seed": 10**400}, "invalid_request", "seed"),
    ("stop empty", ASK | {"stop": ""}, "invalid_request", "stop"),
    ("stop with an empty one", ASK | {"stop": ["a", ""]}, "invalid_request", "stop"),
    ("stop too many", ASK | {"stop": ["a"] * 65}, "invalid_request", "stop"),
    ("stop too long", ASK | {"stop": "a" * 1025}, "invalid_request", "stop"),
    ("stop a number", ASK | {"stop": 1}, "invalid_request", "stop"),
    ("stop token beyond the vocabulary", ASK | {"stop_token_ids": [10**7]}, "invalid_request", "stop_token_ids"),
    ("stop token negative", ASK | {"stop_token_ids": [-1]}, "invalid_request", "stop_token_ids"),
    ("allowed tokens empty", ASK | {"allowed_token_ids": []}, "invalid_request", "allowed_token_ids"),
    ("bias on a word", ASK | {"logit_bias": {"肯定": -100}}, "invalid_request", "logit_bias"),
    ("bias on a superscript digit", ASK | {"logit_bias": {"²": 1}}, "invalid_request", "logit_bias"),
    ("bias beyond the vocabulary", ASK | {"logit_bias": {"9999999999": 1}}, "invalid_request", "logit_bias"),
    ("bias too strong", ASK | {"logit_bias": {"5": 101}}, "invalid_request", "logit_bias"),
    ("bias a list", ASK | {"logit_bias": [1]}, "invalid_request", "logit_bias"),
    ("top_logprobs alone", ASK | {"top_logprobs": 2}, "contradictory_parameters", "top_logprobs"),
    ("top_logprobs too many", ASK | {"logprobs": True, "top_logprobs": 21}, "invalid_request", "top_logprobs"),
    ("logprobs a number", ASK | {"logprobs": 5}, "invalid_request", "logprobs"),
    ("thinking on and off", ASK | {"enable_thinking": True, "think": False}, "contradictory_parameters", "think"),
    ("budget without thinking", ASK | {"enable_thinking": False, "thinking_budget": 9}, "contradictory_parameters", "thinking_budget"),
    ("reasoning wanted and not", ASK | {"return_reasoning": True, "include_reasoning": False}, "contradictory_parameters", "return_reasoning"),
    ("enable_thinking a string", ASK | {"enable_thinking": "yes"}, "invalid_request", "enable_thinking"),
    ("budget below -1", ASK | {"thinking_budget": -2}, "invalid_request", "thinking_budget"),
    ("effort unknown", ASK | {"reasoning_effort": "extreme"}, "invalid_request", "reasoning_effort"),
    ("effort a list", ASK | {"reasoning": {"effort": ["high"]}}, "invalid_request", "reasoning.effort"),
    ("template switch a number", ASK | {"chat_template_kwargs": {"enable_thinking": 0}}, "invalid_request", "chat_template_kwargs.enable_thinking"),
    ("tools not a list", ASK | {"tools": TOOL}, "invalid_request", "tools"),
    ("tool without a function", ASK | {"tools": [{"type": "function"}]}, "invalid_request", "tools[0].function"),
    ("tool of another type", ASK | {"tools": [TOOL | {"type": "retrieval"}]}, "invalid_request", "tools[0].type"),
    ("tool without a name", ASK | {"tools": [{"type": "function", "function": {"name": ""}}]}, "invalid_request", "tools[0].function.name"),
    ("choice without tools", ASK | {"tool_choice": "required"}, "invalid_request", "tools"),
    ("choice unknown", ASK | {"tools": [TOOL], "tool_choice": "always"}, "invalid_request", "tool_choice"),
    ("choice of another tool", ASK | {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "invalid_request", "tool_choice"),
    ("call and format", ASK | {"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}}, "contradictory_parameters", "tool_choice"),
    ("format unknown", ASK | {"response_format": {"type": "xml"}}, "invalid_request", "response_format.type"),
    ("format without a schema", ASK | {"response_format": {"type": "json_schema"}}, "invalid_request", "response_format.json_schema.schema"),
    ("two formats", ASK | {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "contradictory_parameters", "response_format"),
    ("two constraints", ASK | {"structured_outputs": {"regex": "a", "choice": ["b"]}}, "contradictory_parameters", "structured_outputs"),
    ("choice list empty", ASK | {"structured_outputs": {"choice": []}}, "invalid_request", "structured_outputs.choice"),
    ("schema that is no JSON", ASK | {"structured_outputs": {"json": "{"}}, "invalid_request", "structured_outputs.json"),
    ("schema that is a list", ASK | {"structured_outputs": {"json": "[]"}}, "invalid_request", "structured_outputs.json"),
    ("schema nested too deep", ASK | {"structured_outputs": {"json": "[" * 100_000}}, "invalid_request", "structured_outputs.json"),
    ("schema that the engine refuses", ASK | {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}, "invalid_request", None),
    ("regex that the engine refuses", ASK | {"structured_outputs": {"regex": "("}}, "invalid_request", None),
    ("include_usage a string", ASK | {"stream_options": {"include_usage": "yes"}}, "invalid_request", "stream_options.include_usage"),
    ("a session", ASK | {"session_id": "s1"}, "unsupported_parameter", "session_id"),
    ("prompt_logprobs", ASK | {"prompt_logprobs": 1}, "unsupported_parameter", "prompt_logprobs"),
    ("echo", ASK | {"echo": True}, "unsupported_parameter", "echo"),
    ("continue_final_message", ASK | {"continue_final_message": True}, "unsupported_parameter", "continue_final_message"),
    ("add_generation_prompt off", ASK | {"add_generation_prompt": False}, "unsupported_parameter", "add_generation_prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "code", "param"), [pytest.param(*row[1:], id=row[0]) for row in BODIES])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_wrong_request_is_refused_with_its_code_and_field(engine, in_process: Factory, body, code, param, stream) -> None:
    if stream and "stream" not in body:
        body = body | {"stream": True}
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


RAW: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "invalid_json"),
    ("half an object", b'{"messages": [', "invalid_json"),
    ("a trailing comma", b'{"messages": [],}', "invalid_json"),
    ("single quotes", b"{'messages': []}", "invalid_json"),
    ("a list", b"[]", "invalid_request"),
    ("null", b"null", "invalid_request"),
    ("a number", b"1", "invalid_request"),
    ("not UTF-8", b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', "invalid_json"),
    ("UTF-16", json.dumps(ASK).encode("utf-16"), "invalid_json"),
    ("a lone surrogate", b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_json"),
    ("a lone surrogate as a key", b'{"messages": [{"role": "user", "content": "a"}], "\\udfff": 1}', "invalid_json"),
    ("1 MB of nested objects", deep(150_000).encode(), "invalid_json"),
    ("1 MB of nested lists", b"[" * 1_000_000, "invalid_json"),
    ("nested content", b'{"messages": [{"role": "user", "content": ' + deep(100_000).encode() + b"}]}", "invalid_json"),
    ("temperature NaN", b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', "invalid_request"),
    ("top_p Infinity", b'{"messages": [{"role": "user", "content": "a"}], "top_p": Infinity}', "invalid_request"),
    ("bias -Infinity", b'{"messages": [{"role": "user", "content": "a"}], "logit_bias": {"1": -Infinity}}', "invalid_request"),
    ("a number of 1e999", b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}', "invalid_request"),
    ("an integer of 5,000 digits", b'{"messages": [{"role": "user", "content": "a"}], "seed": ' + b"9" * 5000 + b"}", "invalid_json"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "code"), [pytest.param(*row[1:], id=row[0]) for row in RAW])
async def test_a_body_that_is_no_request_is_refused(engine, in_process: Factory, raw, code) -> None:
    async with in_process(engine) as running:
        response = await running.client.post(CHAT, content=raw, headers={"content-type": "application/json"})
        error = error_of(response, 400, code)
    assert len(error["message"]) < 1000
    assert engine.asked == []


ODD_BUT_FINE: list[tuple[str, bytes]] = [
    ("NUL in text", b'{"messages": [{"role": "user", "content": "a\\u0000b"}]}'),
    ("every control character", json.dumps({"messages": [{"role": "user", "content": "".join(map(chr, range(32)))+ "x"}]}).encode()),
    ("noncharacters and unassigned", json.dumps({"messages": [{"role": "user", "content": "\ufffe\uffff\U000e0001\U0010ffff"}]}).encode()),
    ("NUL in a tool's name", b'{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function", "function": {"name": "a\\u0000"}}]}'),
    ("NaN in an unknown field", b'{"messages": [{"role": "user", "content": "a"}], "metadata": {"x": NaN}}'),
    ("NaN in a tool's schema", b'{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": NaN}}}]}'),
    ("a huge integer in a tool's schema", b'{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function", "function": {"name": "f", "parameters": {"maximum": ' + b"9" * 400 + b"}}}]}"),
    ("nested unknown field", b'{"messages": [{"role": "user", "content": "a"}], "metadata": ' + deep(150).encode() + b"}"),
    ("nested tool schema", b'{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function", "function": {"name": "f", "parameters": ' + deep(150).encode() + b"}}]}"),
    ("doubled messages", b'{"messages": 5, "messages": [{"role": "user", "content": "a"}]}'),
    ("arguments that are no JSON", b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, {"role": "tool", "content": "b"}]}'),
    ("an argument NaN", b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": NaN}}}]}, {"role": "tool", "content": "b"}]}'),
    ("a tool result first", b'{"messages": [{"role": "tool", "content": "b"}]}'),
    ("only a system message", b'{"messages": [{"role": "system", "content": "b"}]}'),
    ("an assistant last", b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>b"}]}'),
    ("a byte order mark inside", json.dumps({"messages": [{"role": "user", "content": "\ufeff头痛"}]}).encode()),
]  # fmt: skip


FORCED = [(f"{name}, forced", raw[:-1] + b', "tool_choice": "required"}') for name, raw in ODD_BUT_FINE if b'"tools"' in raw]


@pytest.mark.parametrize("raw", [pytest.param(row[1], id=row[0]) for row in [*ODD_BUT_FINE, *FORCED]])
async def test_odd_input_is_answered_all_the_same(engine, in_process: Factory, raw) -> None:
    async with in_process(engine) as running:
        response = await running.client.post(CHAT, content=raw)
        assert response.status_code == 200, response.text


async def test_a_schema_with_an_integer_beyond_python_is_refused(engine, in_process: Factory) -> None:
    raw = b'{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": ' + b"9" * 5000 + b"}}}]}"  # fmt: skip
    async with in_process(engine) as running:
        error_of(await running.client.post(CHAT, content=raw), 400, "invalid_json")


async def test_a_body_over_the_limit_is_refused_by_its_declared_size(engine, in_process: Factory) -> None:
    async with in_process(engine, max_body_bytes=2048) as running:
        response = await running.chat(messages=[{"role": "user", "content": "x" * 3000}])
        error_of(response, 413, "request_too_large")
        assert running.metric("medthink_errors_total", code="request_too_large") == 1


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "*/*"])
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
    [("GET", CHAT, "POST"), ("PUT", CHAT, "POST"), ("DELETE", "/v1/models", "GET"), ("POST", "/livez", "GET"), ("BREW", CHAT, "POST")],
)
async def test_a_wrong_method_names_the_right_one(engine, in_process: Factory, method, path, allowed) -> None:
    async with in_process(engine) as running:
        response = await running.client.request(method, path)
        error_of(response, 405, "method_not_allowed")
        assert response.headers["allow"] == allowed
        assert running.metric("medthink_errors_total", code="method_not_allowed") == 1


@pytest.mark.parametrize("path", ["/v1/nothing", "/v2/chat/completions", "/%00", "/..%2f..%2fetc/passwd", "/%ff", "/" + "a" * 5000])
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
