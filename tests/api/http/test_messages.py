"""Errors in the reader's language: the header is read as RFC 9110 says, every code has its Chinese, codes never change."""

from __future__ import annotations

import json
import re
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api import errors, messages
from tests.fakes import FakeEngine, Pen
from tests.running import Factory, error_of, frames_of

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "你好"}]}
CHAT = "/v1/chat/completions"
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def every_error(error: type[errors.ApiError] = errors.ApiError) -> list[type[errors.ApiError]]:
    return [error, *(e for sub in error.__subclasses__() for e in every_error(sub))]


def test_every_code_has_a_chinese_text_and_every_text_a_code() -> None:
    assert set(messages.ZH) == {error.code for error in every_error()}


@pytest.mark.parametrize("code", messages.ZH)
def test_a_chinese_text_is_a_sentence_with_values_that_there_are(code: str) -> None:
    text = messages.ZH[code]
    assert len(CHINESE.findall(text)) > 8
    assert text.endswith(("。", "{detail}"))
    named = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    assert named <= {"where", "detail", "request_id"}


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("zh", "zh"),
        ("zh-CN", "zh"),
        ("zh-Hans-CN", "zh"),
        ("zh-TW", "zh"),
        ("ZH-hant", "zh"),
        ("en-GB", "en"),
        ("fr", "en"),
        ("*", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-US,en;q=0.9,zh-CN;q=0.8", "en"),
        ("en;q=0.5, zh;q=0.6", "zh"),
        ("en ; q=0.5 , zh ;\tQ=0.600", "zh"),
        ("en, zh", "en"),
        ("zh, en", "zh"),
        ("fr, zh;q=0.1", "zh"),
        ("zh;q=0", "en"),
        ("zh;q=0, *", "en"),
        ("en;q=0, *;q=0.1", "zh"),
        ("*;q=0.9, zh;q=0.5", "en"),
        ("*;q=0.5, zh", "zh"),
        ("zh;q=0.1, zh-TW;q=0.9, en;q=0.5", "zh"),
        ("zh;q=2, en", "en"),
        ("zh;q=abc, en;q=0.1", "en"),
        ("zhx", "en"),
        ("zh_CN", "en"),
        (", ,zh,", "zh"),
    ],
)
def test_the_header_is_read_as_the_standard_says(header: str, language: str) -> None:
    assert messages.preferred(header) == language


@given(st.text())
def test_any_header_gives_a_language(header: str) -> None:
    assert messages.preferred(header) in ("en", "zh")


@given(st.integers(0, 1000), st.integers(0, 1000), st.booleans())
def test_the_greater_weight_wins_wherever_it_stands(chinese: int, english: int, chinese_first: bool) -> None:
    ranges = [f"zh-CN;q={chinese / 1000:.3f}", f"en;q={english / 1000:.3f}"]
    wins = messages.preferred(", ".join(ranges if chinese_first else ranges[::-1]))
    if chinese != english:
        assert wins == ("zh" if chinese > english else "en")
    else:
        assert wins == ("zh" if chinese_first and chinese else "en")


@pytest.fixture
def engine(chat_format: Any, pen: Pen) -> FakeEngine:
    return FakeEngine(chat_format, pen.thought("想。" * 9, "答。" * 9))


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (CHAT, ASK | {"temperature": "hot"}, 400, "invalid_request"),
        (CHAT, ASK | {"model": "gpt-4o"}, 404, "model_not_found"),
        (CHAT, ASK | {"enable_thinking": True, "think": False}, 400, "contradictory_parameters"),
        (CHAT, ASK | {"n": 10**6}, 400, "invalid_request"),
        ("/v1/sessions", {}, 400, "unsupported_parameter"),
        ("/nowhere", {}, 404, "not_found"),
        ("/v1/models", {}, 405, "method_not_allowed"),
    ],
)
async def test_only_the_message_depends_on_the_language(
    engine: FakeEngine, served: Factory, path: str, body: dict[str, Any], status: int, code: str
) -> None:
    async with served(engine) as running:
        told = {}
        for language in ("en", "zh"):
            response = await running.client.post(path, json=body, headers={"accept-language": f"{language}-X, *;q=0.1"})
            told[language] = error_of(response, status, code)
            assert response.headers["content-language"] == language
            assert response.headers["vary"] == "Accept-Language"
    english, chinese = told["en"].pop("message"), told["zh"].pop("message")
    assert not CHINESE.search(english)
    assert CHINESE.match(chinese)
    assert {**told["en"], "request_id": ""} == {**told["zh"], "request_id": ""}


async def test_a_missing_key_is_told_in_chinese_too(engine: FakeEngine, served: Factory) -> None:
    async with served(engine, api_keys="secret") as running:
        response = await running.client.get("/v1/models", headers={"accept-language": "zh-CN"})
    assert "密钥" in error_of(response, 401, "invalid_api_key")["message"]
    assert response.headers["content-language"] == "zh"


async def test_each_request_has_its_own_language(engine: FakeEngine, served: Factory) -> None:
    async with served(engine) as running:
        for header, language in (("zh", "zh"), ("", "en"), ("zh", "zh")):
            response = await running.client.get("/nowhere", headers={"accept-language": header})
            assert response.headers["content-language"] == language


async def test_what_is_no_error_names_no_language(engine: FakeEngine, served: Factory) -> None:
    async with served(engine) as running:
        response = await running.client.post(CHAT, json=ASK, headers={"accept-language": "zh"})
    assert response.status_code == 200
    assert "content-language" not in response.headers


async def test_an_error_inside_a_stream_comes_in_the_same_language(engine: FakeEngine, served: Factory) -> None:
    async with served(engine) as running:
        engine.dies_after = 12
        response = await running.client.post(CHAT, json=ASK | {"stream": True}, headers={"accept-language": "zh-CN"})
    assert response.status_code == 200
    error = frames_of(response.text)[-1]["error"]
    assert error["code"] == "engine_unavailable"
    assert error["message"].startswith("模型暂时不可用")


async def test_so_does_one_inside_a_stream_of_responses(engine: FakeEngine, served: Factory) -> None:
    async with served(engine) as running:
        engine.dies_after = 12
        body = {"input": "你好", "stream": True, "store": False}
        response = await running.client.post("/v1/responses", json=body, headers={"accept-language": "zh-CN"})
    last = json.loads(response.text.strip().split("data: ")[-1])
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["code"] == "engine_unavailable"
    assert last["response"]["error"]["message"].startswith("模型暂时不可用")
