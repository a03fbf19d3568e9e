"""What operators, orchestrators and model lists ask; request ids, keys and the access log."""

from __future__ import annotations

import logging

import pytest

from services.api import logs
from services.contract.chat_format import ChatFormat
from tests.fakes import FakeEngine, Pen
from tests.running import Factory, error_of, frames_of, until

ASK = {"messages": [{"role": "user", "content": "你好"}]}


@pytest.fixture
def engine(chat_format: ChatFormat, pen: Pen) -> FakeEngine:
    return FakeEngine(chat_format, pen.thought("想", "答"))


async def test_a_healthy_server_says_so_on_every_health_route(engine, in_process: Factory) -> None:
    async with in_process(engine) as running:
        for path, body in [("/livez", "alive"), ("/readyz", "ready"), ("/health", "ready")]:
            response = await running.client.get(path)
            assert (response.status_code, response.json()) == (200, {"status": body})


async def test_readiness_waits_for_the_warm_up(engine, in_process: Factory) -> None:
    engine.first_delay_s = 0.1
    async with in_process(engine, wait=False) as running:
        await until(lambda: engine.running)
        response = await running.client.get("/readyz")
        assert (response.status_code, response.json()) == (503, {"status": "warming up"})
        await until(lambda: running.service.supervisor.is_ready)
        assert (await running.client.get("/readyz")).status_code == 200


async def test_the_warm_up_is_a_batch_of_short_requests(engine, in_process: Factory) -> None:
    async with in_process(engine):
        pass
    assert len(engine.requests) >= 8
    assert engine.most_running >= 8
    assert all(r.sampling.max_tokens <= 16 for r in engine.requests)


async def test_a_dead_engine_is_alive_but_not_ready(engine, in_process: Factory) -> None:
    async with in_process(engine, restart_backoff_s=30) as running:
        engine.die()
        assert (await running.client.get("/livez")).status_code == 200
        assert (await running.client.get("/readyz")).json() == {"status": "restarting"}
        assert (await running.client.get("/health")).status_code == 503
        assert "medthink_ready 0.0" in (await running.client.get("/metrics")).text


async def test_version_names_service_engine_and_model(engine, in_process: Factory) -> None:
    async with in_process(engine) as running:
        body = (await running.client.get("/version")).json()
    assert body["name"] == "MedThink"
    assert body["model"] == "Qwen3-1.7B"
    assert body["demo"] is False
    assert body["engine"] == "vllm fake"
    assert body["max_model_len"] == 2048


async def test_the_front_route_leads_on(engine, in_process: Factory) -> None:
    async with in_process(engine) as running:
        assert (await running.client.get("/")).status_code == 200
        assert (await running.client.get("/openapi.json")).json()["info"]["title"] == "MedThink"


async def test_the_openapi_document_has_every_route_of_the_app(engine, in_process: Factory) -> None:
    async with in_process(engine) as running:
        document = (await running.client.get("/openapi.json")).json()
        routes = {r.path for r in running.service.app.routes if hasattr(r, "methods") and r.path != "/openapi.json"}
    assert {path.replace(":path", "") for path in routes} <= {*document["paths"], *routes - {"/v1/chat/completions"}}
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert "ChatRequest" in str(chat["requestBody"])
    assert {"200", "400", "401", "404", "405", "413", "415", "503"} <= set(chat["responses"])


async def test_metrics_count_requests_tokens_and_choices(engine, in_process: Factory) -> None:
    async with in_process(engine) as running:
        body = (await running.chat(**ASK)).json()
        await running.chat(**ASK, stream=True, n=2)
        await running.client.get("/v1/nothing")
        text = (await running.client.get("/metrics")).text
        route = "/v1/chat/completions"
        assert running.metric("medthink_requests_total", route=route, method="POST", status="200") == 2
        assert running.metric("medthink_choices_total", finish_reason="stop") == 3
        usage = body["usage"]
        reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
        assert running.metric("medthink_reasoning_tokens_total") == 3 * reasoning
        assert running.metric("medthink_answer_tokens_total") == 3 * (usage["completion_tokens"] - reasoning)
        assert running.metric("medthink_time_to_first_event_seconds_count") == 2
        assert running.metric("medthink_turn_seconds_count", stream="true") == 1
        assert running.metric("medthink_active_choices") == 0
        assert running.metric("medthink_errors_total", code="not_found") == 1
    assert "medthink_ready 1.0" in text


async def test_no_metric_label_comes_from_a_client(engine, in_process: Factory) -> None:
    async with in_process(engine) as running:
        for path in ("/v1/秘密", "/v1/models/secret-patient", "/secret"):
            await running.client.request("GET", path, headers={"x-request-id": "secret-id"})
        await running.client.request("SECRET", "/v1/models")
        text = (await running.client.get("/metrics")).text
    assert "secret" not in text.lower()
    assert "秘密" not in text


# Models


async def test_the_model_list_has_openais_shape(engine, in_process: Factory) -> None:
    async with in_process(engine, served_model_name="ward-7") as running:
        body = (await running.client.get("/v1/models")).json()
        assert body["object"] == "list"
        assert [card["id"] for card in body["data"]] == ["ward-7", "Qwen3-1.7B"]
        for card in body["data"]:
            assert card["object"] == "model"
            assert card["max_model_len"] == 2048
            assert card["demo"] is False
            assert (await running.client.get(f"/v1/models/{card['id']}")).json() == card
            assert (await running.chat(**ASK, model=card["id"])).json()["model"] == card["id"]
        assert (await running.chat(**ASK)).json()["model"] == "ward-7"


async def test_a_demo_model_is_announced_as_one(engine, in_process: Factory) -> None:
    async with in_process(engine, demo="演示模型，不是医学") as running:
        cards = (await running.client.get("/v1/models")).json()["data"]
        assert all(card["demo"] and card["notice"] == "演示模型，不是医学" for card in cards)
        assert (await running.client.get("/version")).json()["demo"] is True
        assert (await running.chat(**ASK, model="medthink-demo")).status_code == 200


@pytest.mark.parametrize("name", ["nothing", "a/b", "%E5%8C%BB", "Qwen3-1.7b", "x" * 3000])
async def test_an_unknown_model_is_not_found(engine, in_process: Factory, name) -> None:
    async with in_process(engine) as running:
        error = error_of(await running.client.get(f"/v1/models/{name}"), 404, "model_not_found")
    assert error["param"] == "model"
    assert len(error["message"]) < 400


# Request ids


@pytest.mark.parametrize("given", ["abc-123", "a" * 128, "00-4bf92f3577b34da6a3ce929d0e0e4736:1", "x.y_z"])
async def test_a_request_id_is_echoed(engine, in_process: Factory, given) -> None:
    async with in_process(engine) as running:
        for response in (
            await running.client.get("/livez", headers={"x-request-id": given}),
            await running.client.post("/v1/chat/completions", json=ASK, headers={"x-request-id": given}),
            await running.client.post(
                "/v1/chat/completions", json=ASK | {"stream": True}, headers={"x-request-id": given}
            ),
        ):
            assert response.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", "a\tb", "<script>", 'a"b', "a\\nb", "病", "a;b"])
async def test_a_hostile_request_id_is_replaced(engine, in_process: Factory, given) -> None:
    async with in_process(engine) as running:
        response = await running.client.get("/livez", headers={"x-request-id": given.encode()})
        other = await running.client.get("/livez")
    made = response.headers["x-request-id"]
    assert made.startswith("req_")
    assert made != given
    assert other.headers["x-request-id"] != made


async def test_every_log_line_of_a_request_has_its_id(engine, in_process: Factory, caplog) -> None:
    caplog.set_level(logging.INFO)
    seen: list[tuple[str, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append((record.name, logs.request_id.get()))  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        async with in_process(engine) as running:
            seen.clear()
            await running.client.post("/v1/chat/completions", json=ASK, headers={"x-request-id": "mine"})
            during = [pair for pair in seen if pair[0].startswith(("services", "medthink"))]
    finally:
        logging.getLogger().removeHandler(handler)
    assert {name for name, _ in during} == {"services.api.http.run", "services.api.safety.guard", "medthink.access"}
    assert {request_id for _, request_id in during} == {"mine"}
    assert logs.request_id.get() == "-"


async def test_no_log_line_holds_what_a_patient_wrote(engine, in_process: Factory, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    async with in_process(engine) as running:
        ask = {"messages": [{"role": "user", "content": "我叫张三，身份证丢了"}]}
        await running.chat(**ask)
        await running.chat(**ask, stream=True, temperature=9)
        await running.chat(**ask, n=0)
    assert "张三" not in caplog.text


# Keys


async def test_without_keys_nobody_is_asked_for_one(engine, in_process: Factory) -> None:
    async with in_process(engine) as running:
        response = await running.client.post(
            "/v1/chat/completions", json=ASK, headers={"authorization": "Bearer EMPTY"}
        )
        assert response.status_code == 200


@pytest.mark.parametrize("header", ["Bearer one", "bearer two", "Bearer  two "])
async def test_every_configured_key_opens(engine, in_process: Factory, header) -> None:
    async with in_process(engine, api_keys="one, two") as running:
        response = await running.client.post("/v1/chat/completions", json=ASK, headers={"authorization": header})
        assert response.status_code == 200


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer three", "Basic one", "one", "Bearer one,two", "Bearer on", "Bearer 键"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/nothing"])
async def test_without_a_valid_key_nothing_under_v1_opens(engine, in_process: Factory, header, path) -> None:
    headers = {} if header is None else {"authorization": header.encode()}
    async with in_process(engine, api_keys="one,two") as running:
        response = await running.client.post(path, json=ASK, headers=headers)
        error = error_of(response, 401, "invalid_api_key")
        assert error["type"] == "authentication_error"
        assert response.headers["www-authenticate"] == "Bearer"
        assert running.metric("medthink_errors_total", code="invalid_api_key") == 1
    assert engine.asked == []


async def test_health_and_version_need_no_key(engine, in_process: Factory) -> None:
    async with in_process(engine, api_keys="one") as running:
        for path in ("/livez", "/readyz", "/health", "/version", "/", "/openapi.json"):
            assert (await running.client.get(path)).status_code == 200


async def test_a_stream_is_opened_by_a_key_as_well(engine, in_process: Factory) -> None:
    async with in_process(engine, api_keys="one") as running:
        response = await running.client.post(
            "/v1/chat/completions", json=ASK | {"stream": True}, headers={"authorization": "Bearer one"}
        )
        assert frames_of(response.text)[-1]["choices"][0]["finish_reason"] == "stop"
