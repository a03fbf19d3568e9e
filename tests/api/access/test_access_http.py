"""Keys, scopes and limits as a client meets them; and what stands around every request: CORS, time and size."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from services.api.access.__main__ import main
from services.api.access.door import scope_of
from services.contract.chat_format import ChatFormat
from tests.fakes import FakeEngine, Pen
from tests.running import Factory, error_of, frames_of, until

ASK = {"messages": [{"role": "user", "content": "你好"}]}
CHAT = "/v1/chat/completions"
ORIGIN = "https://ehr.example.org"


@pytest.fixture
def engine(chat_format: ChatFormat, pen: Pen) -> FakeEngine:
    return FakeEngine(chat_format, pen.thought("想", "答"))


@pytest.fixture
def slow(chat_format: ChatFormat, pen: Pen) -> FakeEngine:
    """Writes sentences and never ends by itself."""
    return FakeEngine(chat_format, pen.write("第一句。" * 4), delay_s=0.005)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def key(
    path: Path, capsys: pytest.CaptureFixture[str], scopes: str, *more: str, tenant: str = "ward"
) -> dict[str, str]:
    name = f"{scopes} {len(more)}".replace(",", " ")
    assert (
        main(["create", "--file", str(path), "--json", "--tenant", tenant, "--name", name, "--scopes", scopes, *more])
        == 0
    )
    made: dict[str, str] = json.loads(capsys.readouterr().out)
    return made


def bearer(made: dict[str, str]) -> dict[str, str]:
    return {"authorization": f"Bearer {made['key']}"}


OPEN = {"/", "/livez", "/readyz", "/health", "/version", "/openapi.json", "/web/{name}"}
OWN_AUTH = ("/cases",)  # links that are signed


async def test_every_route_is_behind_a_key_or_known_to_be_open(engine, in_process: Factory) -> None:
    async with in_process(engine) as running:
        routes = {r.path for r in running.service.app.routes if isinstance(r, APIRoute)}
    unguarded = {p for p in routes if scope_of(p) is None and not p.startswith(OWN_AUTH)}
    assert unguarded <= OPEN


SCOPED = [
    ("POST", CHAT, "chat"),
    ("POST", "/v1/responses", "chat"),
    ("GET", "/v1/sessions", "sessions"),
    ("GET", "/v1/adapters", "adapters"),
    ("GET", "/metrics", "metrics"),
    ("GET", "/cds-services", "cds"),
]


@pytest.mark.parametrize(("method", "route", "scope"), SCOPED)
async def test_a_route_opens_for_its_scope_alone(
    engine, in_process: Factory, path, capsys, method, route, scope
) -> None:
    made = {s: key(path, capsys, s) for s in ("chat", "sessions", "adapters", "metrics", "cds")}
    async with in_process(engine, keys_file=str(path), database="", ehr_auth="off") as running:
        error_of(await running.client.request(method, route, json=ASK), 401, "invalid_api_key")
        for own, one in made.items():
            answer = await running.client.request(method, route, json=ASK, headers=bearer(one))
            if own == scope:
                assert answer.status_code not in (401, 403)
            else:
                assert scope in error_of(answer, 403, "insufficient_scope")["message"]
        models = await running.client.get("/v1/models", headers=bearer(made["adapters"]))
        assert models.status_code == 200


async def test_metrics_can_be_left_open(engine, in_process: Factory) -> None:
    async with in_process(engine, api_keys="one", metrics_open=True) as running:
        assert (await running.client.get("/metrics")).status_code == 200


async def test_a_new_key_opens_and_a_revoked_one_closes_while_serving(
    engine, in_process: Factory, path, capsys
) -> None:
    first = key(path, capsys, "chat")
    async with in_process(engine, keys_file=str(path), keys_poll_s=0.01) as running:

        async def status(made: dict[str, str]) -> int:
            return (await running.client.get("/v1/models", headers=bearer(made))).status_code

        assert await status(first) == 200
        second = key(path, capsys, "chat", "--concurrency", "3")
        await until(lambda: running.metric("medthink_key_reloads_total", result="taken_up") == 1)
        assert await status(second) == 200
        assert main(["revoke", first["id"], "--file", str(path)]) == 0
        await until(lambda: running.metric("medthink_key_reloads_total", result="taken_up") == 2)
        answer = await running.client.get("/v1/models", headers=bearer(first))
        assert "revoked" in error_of(answer, 401, "invalid_api_key")["message"]
        path.write_text("{")
        await until(lambda: running.metric("medthink_key_reloads_total", result="refused") == 1)
        assert await status(second) == 200


async def test_two_keys_of_a_tenant_share_sessions_and_another_tenant_sees_none(
    engine, in_process: Factory, path, capsys, tmp_path
) -> None:
    one, two = (key(path, capsys, "chat,sessions", *more) for more in ((), ("--concurrency", "9")))
    other = key(path, capsys, "sessions", tenant="clinic")
    async with in_process(engine, keys_file=str(path), database=str(tmp_path / "m.db")) as running:
        body = ASK | {"session_id": "s1"}
        assert (await running.client.post(CHAT, json=body, headers=bearer(one))).status_code == 200
        assert (await running.client.get("/v1/sessions/s1", headers=bearer(two))).json()["turn_count"] == 1
        error_of(await running.client.get("/v1/sessions/s1", headers=bearer(other)), 404, "session_not_found")


async def test_a_rate_is_a_429_with_the_time_to_wait(engine, in_process: Factory, path, capsys) -> None:
    made, free = key(path, capsys, "chat", "--requests-per-minute", "2"), key(path, capsys, "chat")
    async with in_process(engine, keys_file=str(path)) as running:
        for left in ("1", "0"):
            answer = await running.client.post(CHAT, json=ASK, headers=bearer(made))
            assert answer.status_code == 200
            assert answer.headers["x-ratelimit-limit-requests"] == "2"
            assert answer.headers["x-ratelimit-remaining-requests"] == left
        answer = await running.client.post(CHAT, json=ASK, headers=bearer(made))
        assert error_of(answer, 429, "rate_limit_exceeded")["type"] == "rate_limit_error"
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        unlimited = await running.client.post(CHAT, json=ASK, headers=bearer(free))
        assert "x-ratelimit-limit-requests" not in unlimited.headers


async def test_places_at_a_time_come_back_however_a_request_ends(slow, in_process: Factory) -> None:
    async with in_process(slow, api_keys="one,two", concurrency_limit=1) as running:
        one, two = ({"authorization": f"Bearer {k}"} for k in ("one", "two"))
        running_one = asyncio.create_task(running.client.post(CHAT, json=ASK, headers=one))
        await until(lambda: bool(slow.running))
        refused = await running.client.get("/v1/models", headers=one)
        error_of(refused, 429, "concurrency_limit_exceeded")
        assert refused.headers["retry-after"] == "1"
        assert (await running.client.get("/v1/models", headers=two)).status_code == 200
        slow.die()
        assert (await running_one).status_code == 503
        assert (await running.client.get("/v1/models", headers=one)).status_code == 200
        error_of(await running.client.post(CHAT, content=b"{", headers=one), 400, "invalid_json")
        assert (await running.client.get("/v1/models", headers=one)).status_code == 200


async def test_a_limit_without_keys_holds_for_all_together(engine, in_process: Factory) -> None:
    async with in_process(engine, rate_limit=1) as running:
        assert (await running.chat(**ASK)).status_code == 200
        error_of(await running.chat(**ASK), 429, "rate_limit_exceeded")
        assert (await running.client.get("/readyz")).status_code == 200


# CORS


async def test_no_origin_may_call_unless_it_is_named(engine, in_process: Factory) -> None:
    async with in_process(engine) as running:
        answer = await running.client.get("/v1/models", headers={"origin": ORIGIN})
        assert "access-control-allow-origin" not in answer.headers


async def test_a_named_origin_may_call_and_read_refusals(engine, in_process: Factory) -> None:
    async with in_process(engine, api_keys="one", cors_origins=ORIGIN) as running:
        asks = {"origin": ORIGIN, "access-control-request-method": "POST"}
        asks |= {"access-control-request-headers": "authorization,content-type"}
        preflight = await running.client.options(CHAT, headers=asks)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        refused = await running.client.post(CHAT, json=ASK, headers={"origin": ORIGIN})
        error_of(refused, 401, "invalid_api_key")
        assert refused.headers["access-control-allow-origin"] == ORIGIN
        assert "access-control-allow-credentials" not in refused.headers
        for other in ("https://ehr.example.org.evil.example", "http://ehr.example.org", "null"):
            answer = await running.client.options(CHAT, headers=asks | {"origin": other})
            assert "access-control-allow-origin" not in answer.headers


# Time and size


async def test_a_request_that_takes_too_long_is_stopped(slow, in_process: Factory) -> None:
    async with in_process(slow, request_limit_s=0.8) as running:
        error_of(await running.chat(**ASK), 504, "request_timed_out")
        await until(lambda: not slow.running)
        streamed = await running.chat(**ASK, stream=True, enable_thinking=False)
        assert streamed.status_code == 200
        assert frames_of(streamed.text)[-1]["error"]["code"] == "request_timed_out"
        await until(lambda: not slow.running)
        events = await running.client.post("/v1/responses", json={"input": "你好", "stream": True, "store": False})
        assert '"request_timed_out"' in events.text.split("\n\n")[-2]
        await until(lambda: not slow.running)
        assert running.metric("medthink_errors_total", code="request_timed_out") == 3


async def test_large_headers_are_refused(engine, in_process: Factory) -> None:
    async with in_process(engine, max_header_bytes=4096) as running:
        answer = await running.client.get("/livez", headers={"x-filler": "x" * 5000})
        error_of(answer, 431, "headers_too_large")
