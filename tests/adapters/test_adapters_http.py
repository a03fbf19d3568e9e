"""Adapters as clients see them: /v1/adapters, /v1/models, `model`, and what is written into a reply's record."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from services.api.app import Model, build
from services.api.settings import DEFAULT_SYSTEM_PROMPT, Settings
from services.contract.adapter_manifest import MANIFEST
from services.contract.chat_format import ChatFormat, Message
from tests.adapters.volumes import Volume, overwrite
from tests.fakes import FakeEngine, Pen
from tests.running import Running, error_of, frames_of, until

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "头痛？"}], "enable_thinking": False}
Serve = Callable[..., contextlib.AbstractAsyncContextManager[Running]]


@pytest.fixture
def serve(volume: Volume, tmp_path: Path, speaking: Callable[..., FakeEngine], pen: Pen, id_to_token: Any) -> Serve:
    """`async with serve() as running`: the whole app over a volume; the model's answer is which version it is."""

    def reply(request: Any) -> list[int]:
        # The version first: a canary looks at the first tokens only.
        model = request.adapter.name if request.adapter else ""
        return pen.answer("@".join(reversed(model.split("@"))) or "base")

    @contextlib.asynccontextmanager
    async def run(delay_s: float = 0.0, **options: Any) -> AsyncIterator[Running]:
        engine = speaking(delay_s=delay_s)
        engine.reply = reply
        places = {"adapters": str(volume.root), "adapter_cache": str(tmp_path / "copies"), "adapter_poll_s": 0.01}
        registry = CollectorRegistry()
        model = Model(engine, engine.chat_format, id_to_token, config=dict(volume.base))
        known = {"max_adapter_rank": 8, "restart_backoff_s": 0.01}
        service = build(Settings(**(places | known | options)), model, registry=registry)
        async with service.life.run(service.app):
            await until(lambda: service.supervisor.is_ready)
            transport = httpx.ASGITransport(app=service.app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://medthink") as client:
                yield Running(service, engine, client, registry)

    return run


async def adapters(running: Running) -> dict[str, dict[str, Any]]:
    """GET /v1/adapters by name; its shape was checked."""
    response = await running.client.get("/v1/adapters")
    assert response.status_code == 200
    body = response.json()
    assert set(body) == {"object", "data"}
    assert body["object"] == "list"
    for adapter in body["data"]:
        assert set(adapter) == {"name", "current", "versions"}
    return {adapter["name"]: adapter for adapter in body["data"]}


async def wait_for(running: Running, name: str, version: str, state: str = "ready") -> dict[str, Any]:
    """The version's entry once it is in that state."""
    async with asyncio.timeout(5):
        while True:
            found = (await adapters(running)).get(name, {"versions": []})["versions"]
            for one in found:
                if (one["version"], one["state"]) == (version, state):
                    return one
            await asyncio.sleep(0.005)


async def answer(running: Running, model: str | None, **fields: Any) -> str:
    response = await running.chat(**ASK, model=model, **fields)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def spoken(name: str, version: str) -> str:
    return f"{version}@{name}"


async def test_a_published_adapter_is_listed_served_and_named_in_the_reply(serve: Serve, volume: Volume) -> None:
    async with serve() as running:
        version = volume.publish("cardio")
        entry = await wait_for(running, "cardio", version)
        assert set(entry) == {
            "version", "state", "reason", "requests", "model", "load_seconds", "loaded_at", "created", "rank", "targets",
            "metrics", "data_sha256", "base",
        }  # fmt: skip
        assert (entry["model"], entry["reason"], entry["requests"]) == (f"cardio@{version}", None, 0)
        assert (entry["rank"], entry["targets"], entry["metrics"]) == (8, ["q_proj", "v_proj"], {"val_loss": 1.25})
        assert (await adapters(running))["cardio"]["current"] == version
        for model in ("cardio", f"cardio@{version}"):
            body = (await running.chat(**ASK, model=model)).json()
            assert body["choices"][0]["message"]["content"] == spoken("cardio", version)
            assert body["adapter"] == {"name": "cardio", "version": version}
            assert body["model"] == model


async def test_a_streams_last_chunk_names_the_version_that_wrote_it(serve: Serve, volume: Volume) -> None:
    async with serve() as running:
        version = volume.publish("cardio")
        await wait_for(running, "cardio", version)
        frames = frames_of((await running.chat(**ASK, model="cardio", stream=True)).text)
    used = [f["adapter"] for f in frames if f.get("adapter")]
    assert used == [{"name": "cardio", "version": version}]
    (last,) = (f for f in frames if f["choices"][0]["finish_reason"])
    assert last["adapter"] == used[0]


async def test_the_base_model_is_untouched_by_adapters(serve: Serve, volume: Volume) -> None:
    async with serve() as running:
        await wait_for(running, "cardio", volume.publish("cardio"))
        for model in (None, "Qwen3-1.7B"):
            assert await answer(running, model) == "base"
        assert (await running.chat(**ASK)).json()["adapter"] is None
        assert all(r.adapter is None for r in running.engine.asked if r.request_id.startswith("chatcmpl"))


async def test_models_lists_names_with_their_current_version(serve: Serve, volume: Volume) -> None:
    async with serve() as running:
        version = volume.publish("cardio")
        await wait_for(running, "cardio", version)
        cards = {card["id"]: card for card in (await running.client.get("/v1/models")).json()["data"]}
        assert list(cards) == ["Qwen3-1.7B", "cardio"]
        assert (cards["cardio"]["parent"], cards["cardio"]["version"]) == ("Qwen3-1.7B", version)
        assert "version" not in cards["Qwen3-1.7B"]
        one = (await running.client.get("/v1/models/cardio")).json()
        assert one == cards["cardio"]
        error_of(await running.client.get("/v1/models/neuro"), 404, "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        "neuro",
        "cardio@",
        "cardio@1",
        "cardio@" + "0" * 16,
        "../cardio",
        "/etc/passwd",
        "cardio/..",
        "@",
        "cardio@..",
        "x" * 9999,
    ],
)
async def test_an_unknown_name_is_404(serve: Serve, volume: Volume, model: str, stream: bool) -> None:
    async with serve() as running:
        await wait_for(running, "cardio", volume.publish("cardio"))
        before = await adapters(running)
        error = error_of(await running.chat(**ASK, model=model, stream=stream), 404, "model_not_found")
        assert error["param"] == "model"
        assert len(error["message"]) < 400
        assert str(volume.root) not in error["message"]
        assert await adapters(running) == before


async def test_a_refused_version_is_shown_with_its_reason_counted_and_the_old_one_serves(
    serve: Serve, volume: Volume
) -> None:
    async with serve() as running:
        good = volume.publish("cardio", 1)
        await wait_for(running, "cardio", good)
        bad = volume.place("cardio", volume.tensors(rank=16))
        entry = await wait_for(running, "cardio", bad, "refused")
        assert "shape" in entry["reason"]
        assert running.metric("medthink_adapter_changes_total", state="refused") == 1
        assert (await adapters(running))["cardio"]["current"] == good
        assert await answer(running, "cardio") == spoken("cardio", good)
        error = error_of(await running.chat(**ASK, model=f"cardio@{bad}"), 404, "model_not_found")
        assert "shape" in error["message"]


@pytest.mark.parametrize(
    ("trained_with", "sent", "expected"),
    [
        ("你是心内科助手。", [], "你是心内科助手。"),
        ("你是心内科助手。", [{"role": "system", "content": "只答是或否。"}], "只答是或否。"),
        ("", [], None),
        (None, [], DEFAULT_SYSTEM_PROMPT),
    ],
)
async def test_an_adapter_brings_the_system_prompt_that_it_was_trained_with(
    serve: Serve,
    volume: Volume,
    chat_format: ChatFormat,
    trained_with: str | None,
    sent: list[Any],
    expected: str | None,
) -> None:
    async with serve() as running:
        version = volume.publish("cardio", system_prompt=trained_with)
        await wait_for(running, "cardio", version)
        question = ASK["messages"][0]
        await running.chat(**(ASK | {"messages": [*sent, question]}), model="cardio")
        asked = running.engine.asked[-1]
        turns = [Message(role="system", content=expected)] if expected else []
        ids = chat_format.write([*turns, Message(role="user", content=question["content"])])
        assert asked.prompt_ids[: len(ids)] == ids
        assert len(asked.prompt_ids) == len(ids) + len(chat_format.write_reply_opening(False))


async def test_a_running_stream_keeps_its_version_while_new_requests_get_the_next(serve: Serve, volume: Volume) -> None:
    async with serve(delay_s=0.01) as running:
        old = volume.publish("cardio", 1)
        await wait_for(running, "cardio", old)
        stream = asyncio.create_task(running.chat(**ASK, model="cardio", stream=True))
        await until(lambda: any(r.startswith("chatcmpl") for r in running.engine.running))
        new = volume.publish("cardio", 2)
        await until(lambda: f"cardio@{new}" in running.engine.loads)
        await wait_for(running, "cardio", new)
        assert not stream.done(), "the test proves nothing"
        assert await answer(running, "cardio") == spoken("cardio", new)
        frames = frames_of((await stream).text)
        text = "".join(f["choices"][0]["delta"].get("content") or "" for f in frames)
        assert text == spoken("cardio", old)
        assert frames[-1]["adapter"]["version"] == old
        await wait_for(running, "cardio", old, "unloaded")


async def test_when_every_place_is_leased_the_answer_is_503_for_a_moment(serve: Serve, volume: Volume) -> None:
    async with serve(delay_s=0.01, max_adapters_loaded=1) as running:
        one = volume.publish("cardio", 1)
        await wait_for(running, "cardio", one)
        other = volume.publish("neuro", 2)
        await wait_for(running, "neuro", other, "unloaded")
        busy = asyncio.create_task(running.chat(**ASK, model="cardio"))
        await until(lambda: any(r.startswith("chatcmpl") for r in running.engine.running))
        error = error_of(await running.chat(**ASK, model="neuro"), 503, "server_overloaded")
        assert "adapter" in error["message"]
        assert (await busy).status_code == 200
        assert await answer(running, "neuro") == spoken("neuro", other)


async def test_adapters_are_served_again_after_an_engine_restart(serve: Serve, volume: Volume) -> None:
    async with serve() as running:
        version = volume.publish("cardio")
        await wait_for(running, "cardio", version)
        volume.vanish()
        running.engine.die()
        await until(lambda: running.engine.starts == 2 and running.service.supervisor.is_ready)
        assert await answer(running, "cardio") == spoken("cardio", version)
        await until(lambda: running.metric("medthink_adapter_volume_up") == 0)
        assert (await running.client.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    "metrics", ['{"x": 1e999}', '{"x": NaN}', f'{{"x": 1{"0" * 40}}}', '{"x": "\\u0000\\ud83d\\ude00"}']
)
async def test_no_manifest_breaks_the_list(serve: Serve, volume: Volume, metrics: str) -> None:
    def change(folder: Path) -> None:
        text = (folder / MANIFEST).read_text()
        known = json.loads(text) | {"metrics": "HERE"}
        overwrite(folder / MANIFEST, json.dumps(known).replace('"HERE"', metrics))

    async with serve() as running:
        version = volume.place_raw("odd", change)
        good = volume.publish("zzz")
        await wait_for(running, "zzz", good)
        assert version in json.dumps(await adapters(running))


async def test_without_a_volume_there_is_an_empty_list(serve: Serve) -> None:
    async with serve(adapters="") as running:
        assert await adapters(running) == {}
        error_of(await running.chat(**ASK, model="cardio"), 404, "model_not_found")


async def test_an_adapter_cannot_take_the_base_models_name(serve: Serve, volume: Volume) -> None:
    async with serve() as running:
        version = volume.publish("Qwen3-1.7B")
        good = volume.publish("zzz", 1)
        await wait_for(running, "zzz", good)
        assert await answer(running, "Qwen3-1.7B") == "base"
        ids = [card["id"] for card in (await running.client.get("/v1/models")).json()["data"]]
        assert ids == ["Qwen3-1.7B", "zzz"]
        entry = await wait_for(running, "Qwen3-1.7B", version, "refused")
        assert "base model" in entry["reason"]
