"""What only a real socket shows: timing, clients that leave, an engine that dies under a stream."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import httpx
import pytest

from services.contract.chat_format import THINK, ChatFormat
from tests.fakes import FakeEngine, Pen
from tests.running import Factory, added_up, error_of, frames_of, until

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "头痛？"}]}


@pytest.fixture
def endless(chat_format: ChatFormat, pen: Pen) -> FakeEngine:
    return FakeEngine(chat_format, pen.write(THINK, "想"), delay_s=0.005)


async def test_a_stream_arrives_as_it_is_written(chat_format, pen: Pen, served: Factory) -> None:
    engine = FakeEngine(chat_format, pen.thought("想一想。" * 6, "请就诊。"), delay_s=0.03)
    async with served(engine) as running:
        begun, times, chunks = time.monotonic(), [], []
        async with running.client.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True}) as response:
            async for chunk in response.aiter_raw():
                times.append(time.monotonic() - begun)
                chunks.append(chunk)
    assert b"".join(chunks).endswith(b"data: [DONE]\n\n")
    assert len(times) > 5
    assert times[0] < times[-1] / 2


async def wait_for_generation(running: Any) -> None:
    await until(lambda: any(r.startswith("chatcmpl") for r in running.engine.running))


@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_leaves_a_stream_aborts_it_in_the_engine(endless, served: Factory, n) -> None:
    async with served(endless) as running:
        async with running.client.stream(
            "POST", "/v1/chat/completions", json=ASK | {"stream": True, "n": n}
        ) as response:
            await anext(response.aiter_raw())
            await until(lambda: len(endless.running) == n)
        await until(lambda: not endless.running, 2)
        assert len([r for r in endless.aborted if r.startswith("chatcmpl")]) == n
        await until(lambda: running.service.admission.active == 0, 1)
        await until(lambda: running.metric("medthink_client_disconnects_total") == 1, 1)


async def leave_early(running: Any, body: dict[str, Any]) -> None:
    """Sends a request over a bare socket and closes it once the engine is at work, before any answer."""
    text = json.dumps(body).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rsplit(":", 1)[1]))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n\r\n"
    writer.write(head.encode() + text)
    await writer.drain()
    await wait_for_generation(running)
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_leaves_before_a_whole_reply_aborts_it_in_the_engine(endless, served: Factory) -> None:
    async with served(endless) as running:
        await leave_early(running, ASK)
        await until(lambda: not endless.running, 2)
        assert running.metric("medthink_client_disconnects_total") == 1
        assert (await running.client.get("/livez")).status_code == 200


async def test_a_client_that_leaves_before_the_first_frame_aborts_it_in_the_engine(
    chat_format, pen: Pen, served
) -> None:
    engine = FakeEngine(chat_format, pen.write(THINK, "想"), delay_s=0.005)
    async with served(engine) as running:
        engine.first_delay_s = 30
        await leave_early(running, ASK | {"stream": True})
        await until(lambda: not engine.running, 2)


async def test_a_client_that_leaves_while_it_sends_is_no_error_of_ours(endless, served: Factory, caplog) -> None:
    caplog.set_level(logging.INFO)
    async with served(endless) as running:
        _, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rsplit(":", 1)[1]))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()
        await writer.wait_closed()
        await until(lambda: any("/v1/chat/completions" in r.getMessage() for r in caplog.records), 2)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_a_silent_stream_gets_keep_alive_comments(chat_format, pen: Pen, served: Factory) -> None:
    engine = FakeEngine(chat_format, pen.answer("答"))
    async with served(engine, keep_alive_s=0.05) as running:
        engine.first_delay_s = 0.4
        response = await running.chat(**ASK, stream=True)
    assert response.text.startswith(": keep-alive\n\n")
    assert 2 <= response.text.count(": keep-alive\n\n") <= 8
    assert added_up(frames_of(response.text))[0]["content"] == "答"


async def test_a_lively_stream_gets_none(chat_format, pen: Pen, served: Factory) -> None:
    engine = FakeEngine(chat_format, pen.thought("想。" * 20, "答。"), delay_s=0.01)
    async with served(engine, keep_alive_s=0.2) as running:
        response = await running.chat(**ASK, stream=True)
    assert ": keep-alive" not in response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_start_is_an_http_error(chat_format, pen: Pen, served: Factory, stream) -> None:
    engine = FakeEngine(chat_format, pen.thought("想", "答"))
    async with served(engine) as running:
        engine.dies_after = 0
        error_of(await running.chat(**ASK, stream=stream), 503, "engine_unavailable")
        assert running.metric("medthink_errors_total", code="engine_unavailable") == 1


async def test_an_error_after_the_start_is_a_frame_and_then_the_end(chat_format, pen: Pen, served: Factory) -> None:
    engine = FakeEngine(chat_format, pen.thought("想。" * 9, "答。" * 9))
    async with served(engine) as running:
        engine.dies_after = 12
        response = await running.chat(**ASK, stream=True)
    assert response.status_code == 200
    frames = frames_of(response.text)
    error = frames[-1]["error"]
    assert error["code"] == "engine_unavailable"
    assert error["request_id"] == response.headers["x-request-id"]
    assert all("error" not in frame for frame in frames[:-1])
    assert all(c["finish_reason"] is None for frame in frames[:-1] for c in frame["choices"])


async def test_an_error_after_a_keep_alive_is_a_frame_too(chat_format, pen: Pen, served: Factory) -> None:
    engine = FakeEngine(chat_format, pen.answer("答"))
    async with served(engine, keep_alive_s=0.03) as running:
        engine.first_delay_s, engine.dies_after = 0.15, 0
        response = await running.chat(**ASK, stream=True)
    assert response.status_code == 200
    assert [f["error"]["code"] for f in frames_of(response.text)] == ["engine_unavailable"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unforeseen_error_tells_no_secret(chat_format, pen: Pen, served: Factory, stream, caplog) -> None:
    engine = FakeEngine(chat_format, pen.thought("想", "答"))
    async with served(engine) as running:
        engine.raised = RuntimeError("密码 hunter2")
        response = await running.chat(**ASK, stream=stream)
        error = error_of(response, 500, "internal_error")
        engine.raised = None
        assert (await running.chat(**ASK)).status_code == 200
    assert "hunter2" not in response.text
    assert error["request_id"] in error["message"]
    assert [r.exc_info is not None for r in caplog.records if r.levelno >= logging.ERROR] == [True]


async def test_an_engine_that_died_is_restarted_and_serves_again(chat_format, pen: Pen, served: Factory) -> None:
    engine = FakeEngine(chat_format, pen.thought("想", "答"))
    async with served(engine, restart_backoff_s=0.01) as running:
        engine.die()
        assert (await running.client.get("/readyz")).status_code == 503
        error_of(await running.chat(**ASK), 503, "engine_unavailable")
        await until(lambda: running.service.supervisor.is_ready)
        assert (await running.chat(**ASK)).status_code == 200
        assert running.metric("medthink_engine_restarts_total") == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_house_says_so_at_once(endless, served: Factory, stream) -> None:
    async with served(endless, max_active_requests=2) as running:
        async with asyncio.TaskGroup() as group:
            inside = [group.create_task(running.chat(**ASK, max_tokens=60)) for _ in range(2)]
            await until(lambda: running.service.admission.active == 2)
            begun = time.monotonic()
            response = await running.chat(**ASK, stream=stream)
            assert time.monotonic() - begun < 0.1
            error_of(response, 503, "server_overloaded")
        assert [task.result().status_code for task in inside] == [200, 200]
        assert (await running.chat(**ASK, max_tokens=2)).status_code == 200


async def test_a_request_larger_than_the_house_is_refused_for_good(endless, served: Factory) -> None:
    async with served(endless, max_active_requests=2) as running:
        error = error_of(await running.chat(**ASK, n=3), 400, "invalid_request")
        assert error["param"] == "n"


async def test_places_are_given_back_after_every_kind_of_end(chat_format, pen: Pen, served: Factory) -> None:
    engine = FakeEngine(chat_format, pen.thought("想", "答"))
    async with served(engine, max_active_requests=3) as running:
        for body in (
            {},
            {"stream": True},
            {"n": 3},
            {"structured_outputs": {"regex": "("}},
            {"messages": []},
            {"logit_bias": {"x": 1}},
        ):
            await running.chat(**{**ASK, **body})
            assert running.service.admission.active == 0, body


async def test_a_draining_server_finishes_what_runs_and_takes_no_more(endless, served: Factory) -> None:
    async with served(endless) as running:
        inside = asyncio.create_task(running.chat(**ASK, max_tokens=40, stream=True))
        await wait_for_generation(running)
        running.service.admission.close()
        error_of(await running.chat(**ASK), 503, "shutting_down")
        error_of(await running.chat(**ASK, stream=True), 503, "shutting_down")
        ready = await running.client.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"status": "shutting down"})
        assert (await running.client.get("/livez")).status_code == 200
        assert frames_of((await inside).text)[-1]["choices"][0]["finish_reason"] == "length"
        assert await running.service.admission.wait_until_idle(1)


async def test_an_engine_that_starts_answers_not_yet(chat_format, pen: Pen, served: Factory) -> None:
    engine = FakeEngine(chat_format, pen.thought("想", "答"), start_gate=asyncio.Event())
    async with served(engine, wait=False) as running:
        error_of(await running.chat(**ASK), 503, "engine_unavailable")
        error_of(await running.chat(**ASK, stream=True), 503, "engine_unavailable")
        assert (await running.client.get("/readyz")).json() == {"status": "starting"}
        models = (await running.client.get("/v1/models")).json()["data"]
        assert models[0]["max_model_len"] is None
        engine.start_gate.set()
        await until(lambda: running.service.supervisor.is_ready)
        assert (await running.client.get("/readyz")).json() == {"status": "ready"}
        assert (await running.chat(**ASK)).status_code == 200


async def test_a_body_in_chunks_is_bounded_as_well(endless, served: Factory) -> None:
    async def pieces():
        for _ in range(40):
            yield b" " * 1024

    async with served(endless, max_body_bytes=8192) as running:
        response = await running.client.post("/v1/chat/completions", content=pieces())
        error_of(response, 413, "request_too_large")


async def test_a_slow_stream_does_not_hold_up_the_others(endless, served: Factory) -> None:
    async with served(endless) as running:
        streams = [asyncio.create_task(running.chat(**ASK, stream=True, max_tokens=60)) for _ in range(10)]
        await until(lambda: len(endless.running) == 10)
        begun = time.monotonic()
        assert (await running.client.get("/livez")).status_code == 200
        assert time.monotonic() - begun < 0.25
        responses = await asyncio.gather(*streams)
    assert all(isinstance(r, httpx.Response) and r.status_code == 200 for r in responses)
