"""Time: deadlines, retries, work that is joined, clients that leave, a full house."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from services.api.ehr.cases import Case, Cases
from services.api.ehr.hooks import REVIEW, SUMMARY
from tests.api.ehr.conftest import ANSWER, Door
from tests.api.ehr.patients import bundle as bundle_of
from tests.api.ehr.patients import chart, condition, medicine, sign, value, view
from tests.running import Running, until

SLOW = {"delay_s": 0.03}  # a token every 30 ms: no reply is ready within the deadline below
SHORT = {"ehr_deadline_s": 0.6}


async def post(running: Running, service: str, body: Any) -> list[dict[str, Any]]:
    response = await running.client.post(f"/cds-services/{service}", json=body)
    assert response.status_code == 200, response.text
    cards: list[dict[str, Any]] = response.json()["cards"]
    return cards


def link_of(card: dict[str, Any]) -> str:
    return str(httpx.URL(card["links"][0]["url"]).raw_path.decode())


def frames_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


async def test_at_the_deadline_there_is_a_card_whose_link_goes_on(door: Door) -> None:
    async with door(SHORT, **SLOW) as running:
        cards = await post(running, SUMMARY, view())
        assert (cards[0]["indicator"], cards[0]["summary"]) == ("info", "AI正在分析，点此查看")
        assert running.engine.running  # it goes on
        path, _, query = link_of(cards[0]).partition("?")
        page = await running.client.get(f"{path}?{query}")
        assert page.status_code == 200
        assert "text/html" in page.headers["content-type"]
        frames = frames_of((await running.client.get(f"{path}/events?{query}")).text)
        assert "".join(f.get("answer", "") for f in frames) == ANSWER
        assert frames[0] == {"language": "zh"}
        assert frames[-1] == {"done": True}
        assert "先看病史" in "".join(f.get("reasoning", "") for f in frames)
        again = await running.client.get(f"{path}/events?{query}", headers={"last-event-id": "999"})
        assert frames_of(again.text) == [{"language": "zh"}, {"done": True}]


async def test_tables_answer_although_the_model_is_late(door: Door) -> None:
    async with door(SHORT, **SLOW) as running:
        cards = await post(running, REVIEW, sign(medicine("阿莫西林胶囊", "draft")))
        assert [c["indicator"] for c in cards] == ["critical", "info"]


@pytest.mark.parametrize("change", ["signature", "expiry", "case", "nothing"])
async def test_a_link_that_was_altered_opens_nothing(door: Door, change: str) -> None:
    async with door() as running:
        path, _, query = link_of((await post(running, SUMMARY, view()))[0]).partition("?")
        expiry, _, signature = query.removeprefix("t=").partition(".")
        wrong = {
            "signature": f"{path}?t={expiry}.{'A' * len(signature)}",
            "expiry": f"{path}?t={int(expiry) + 1}.{signature}",
            "case": f"{path[:-1]}{'0' if path[-1] != '0' else '1'}?{query}",
            "nothing": path,
        }[change]
        assert (await running.client.get(f"{path}?{query}")).status_code == 200
        assert (await running.client.get(wrong)).status_code == 404


async def test_links_expire(door: Door) -> None:
    async with door({"ehr_link_ttl_s": 0.001}) as running:
        url = link_of((await post(running, SUMMARY, view()))[0])
        await asyncio.sleep(1.1)  # expiry counts whole seconds
        assert (await running.client.get(url)).status_code == 404


@pytest.mark.parametrize("origins", ["", "https://ehr.example.org,https://b.example.org"])
async def test_who_may_frame_the_page(door: Door, origins: str) -> None:
    async with door({"ehr_frame_origins": origins}) as running:
        page = await running.client.get(link_of((await post(running, SUMMARY, view()))[0]))
        policy = page.headers["content-security-policy"]
        assert f"frame-ancestors {origins.replace(',', ' ') or chr(39) + 'none' + chr(39)};" in policy
        assert "script-src 'self'" in policy
        assert ("x-frame-options" in page.headers) == (not origins)
        assert page.headers["cache-control"] == "no-store"


async def test_retries_at_once_and_later_are_one_generation_with_the_same_cards(door: Door) -> None:
    async with door(delay_s=0.002) as running:
        call = view()
        together = await asyncio.gather(*(post(running, SUMMARY, call) for _ in range(4)))
        later = await post(running, SUMMARY, call)
        assert len({json.dumps(cards) for cards in [*together, later]}) == 1
        assert len(running.engine.asked) == 1


async def test_a_retry_with_a_new_access_token_is_a_retry(door: Door) -> None:
    grant = {"access_token": "a", "token_type": "Bearer", "expires_in": 300, "scope": "x", "subject": "y"}
    async with door() as running:
        call = view(fhirServer="https://ehr.example.org/fhir", fhirAuthorization=grant)
        first = await post(running, SUMMARY, call)
        assert await post(running, SUMMARY, call | {"fhirAuthorization": grant | {"access_token": "b"}}) == first


async def test_the_same_instance_with_another_body_is_another_call(door: Door) -> None:
    async with door() as running:
        call = view()
        first = await post(running, SUMMARY, call)
        second = await post(running, SUMMARY, call | {"prefetch": chart(conditions=bundle_of(condition("哮喘")))})
        assert first[0]["uuid"] != second[0]["uuid"]
        assert len(running.engine.asked) == 2


async def test_work_begun_when_the_chart_was_opened_serves_the_order(door: Door) -> None:
    async with door() as running:
        opened = await post(running, SUMMARY, view())
        signed = await post(running, REVIEW, sign(medicine("氯雷他定片10mg", "draft")))
        assert len(running.engine.asked) == 1
        assert signed[0]["detail"] == opened[0]["detail"]
        assert signed[0]["uuid"] != opened[0]["uuid"]


async def test_another_patients_chart_is_never_joined(door: Door) -> None:
    """Two patients with the very same facts have two runs: whose link it is must be certain."""
    async with door() as running:
        await post(running, SUMMARY, view())
        other = view(context={"userId": "Practitioner/1", "patientId": "p2"})
        other["prefetch"] = json.loads(
            json.dumps(other["prefetch"]).replace("Patient/p1", "Patient/p2").replace('"p1"', '"p2"')
        )
        await post(running, SUMMARY, other)
        assert len(running.engine.asked) == 2


async def test_a_client_that_leaves_ends_its_generation(door_served: Door) -> None:
    async with door_served(**SLOW) as running:
        with pytest.raises(httpx.ReadTimeout):
            await running.client.post(f"/cds-services/{SUMMARY}", json=view(), timeout=0.4)
        await until(lambda: bool(running.engine.aborted))
        assert not running.engine.running


async def test_one_of_two_clients_may_leave(door_served: Door) -> None:
    async with door_served(delay_s=0.02) as running:
        call = view()
        stays = asyncio.create_task(post(running, SUMMARY, call))
        await until(lambda: bool(running.engine.asked))
        with pytest.raises(httpx.ReadTimeout):
            await running.client.post(f"/cds-services/{SUMMARY}", json=call, timeout=0.2)
        assert (await stays)[0]["summary"].startswith("患者有高血压")
        assert running.engine.aborted == []
        assert len(running.engine.asked) == 1


async def test_a_full_house_says_so(door: Door) -> None:
    async with door({"max_active_requests": 1} | SHORT, **SLOW) as running:
        await post(running, SUMMARY, view())  # goes on behind its link
        other = view(prefetch=chart(conditions=bundle_of(condition("哮喘"))))
        response = await running.client.post(f"/cds-services/{SUMMARY}", json=other)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["issue"][0]["code"] == "throttled"


async def test_a_full_house_keeps_no_danger_back(door: Door) -> None:
    """The tables need no model: what they found is told, whatever the model does."""
    async with door({"max_active_requests": 1} | SHORT, **SLOW) as running:
        await post(running, SUMMARY, view())
        urgent = view(prefetch=chart(observations=bundle_of(value("血钾", 6.9, "mmol/L"))))
        assert [c["indicator"] for c in await post(running, SUMMARY, urgent)] == ["critical"]


async def test_a_dead_engine_is_told_and_the_next_call_tries_again(door: Door) -> None:
    async with door({"restart_backoff_s": 0.01}) as running:
        running.engine.dies_after = 3
        call = view()
        response = await running.client.post(f"/cds-services/{SUMMARY}", json=call)
        assert (response.status_code, response.json()["issue"][0]["code"]) == (503, "transient")
        running.engine.dies_after = None
        await until(lambda: running.service.supervisor.is_ready)
        assert (await post(running, SUMMARY, call))[0]["summary"].startswith("患者有高血压")


async def test_what_the_guard_blocks_is_on_no_card(door: Door, pen: Any) -> None:
    unsafe = "这个病保证能治好，绝对没有任何副作用。"
    async with door(reply=pen.answer(unsafe)) as running:
        cards = await post(running, SUMMARY, view())
        assert "保证能治好" not in json.dumps(cards, ensure_ascii=False)
        assert cards[0]["indicator"] == "warning"


async def test_a_demo_model_is_never_presented_as_medicine(door: Door) -> None:
    async with door({"demo": "a demo"}) as running:
        cards = await post(running, SUMMARY, view())
        assert "演示模型" in cards[0]["detail"]
        path, _, query = link_of(cards[0]).partition("?")
        events = await running.client.get(f"{path}/events?{query}")
        assert frames_of(events.text)[0] == {"language": "zh", "demo": True}


async def test_more_orders_than_can_be_reviewed_are_refused(door: Door) -> None:
    async with door() as running:
        body = sign(*[medicine("阿司匹林", "draft")] * 201)
        response = await running.client.post(f"/cds-services/{REVIEW}", json=body)
        assert response.status_code == 413
        assert running.engine.asked == []


async def test_nobody_joins_a_run_that_is_about_to_end() -> None:
    """Its last client has left: who comes in this very moment gets a run of its own."""
    cases, ended = Cases(60), asyncio.Event()

    async def work(case: Case) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await ended.wait()  # an engine takes a moment to abort

    first = cases.start("key", "zh", work)
    await asyncio.sleep(0)
    with cases.waiting(first):
        assert cases.known("key") is first
    assert cases.known("key") is None
    second = cases.start("key", "zh", work)
    ended.set()
    await until(lambda: first.done)
    assert cases.known("key") is second
    assert second.task is not None
    second.task.cancel()


async def test_pages_of_allowed_origins_may_call(door: Door) -> None:
    sandbox = "https://sandbox.cds-hooks.org"
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "content-type, authorization"}
    async with door({"cors_origins": sandbox}) as running:
        for origin, allowed in ((sandbox, sandbox), ("https://evil.example", None)):
            answer = await running.client.options(f"/cds-services/{SUMMARY}", headers={"origin": origin} | asks)
            assert answer.headers.get("access-control-allow-origin") == allowed
        answer = await running.client.post(f"/cds-services/{SUMMARY}", json=view(), headers={"origin": sandbox})
        assert answer.headers["access-control-allow-origin"] == sandbox


async def test_the_page_shows_the_run_as_it_is_written(door_served: Door, page: Any) -> None:
    async with door_served(SHORT, **SLOW) as running:
        cards = await post(running, SUMMARY, view())
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        await page.goto(running.url + link_of(cards[0]))
        await page.get_by_text("分析完成").wait_for()
        assert await page.inner_text("#answer") == ANSWER
        assert "先看病史" in await page.text_content("#reasoning")
        assert "AI" in await page.inner_text("#label")
        assert wrong == []


async def test_as_many_runs_as_a_process_keeps(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.api.ehr.cases.MOST_CASES", 0)
    async with door() as running:
        quiet = await running.client.post(f"/cds-services/{SUMMARY}", json=view())
        assert (quiet.status_code, quiet.json()["issue"][0]["code"]) == (503, "throttled")
        urgent = view(prefetch=chart(observations=bundle_of(value("血钾", 6.9, "mmol/L"))))
        assert [c["indicator"] for c in await post(running, SUMMARY, urgent)] == ["critical"]
