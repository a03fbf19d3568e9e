"""The audit trail: an entry for every request and nothing of its text; daily files; what happens when the disk fails."""

from __future__ import annotations

import hmac
import json
import shutil
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from services.api.audit.entry import audit_event, entry_json
from services.api.audit.file import AuditTrail, day_file
from services.api.audit.trail import Judged, Trail
from services.contract.chat_format import ChatFormat
from tests.fakes import FakeEngine, Pen
from tests.running import Factory, error_of, until

ASK = {"messages": [{"role": "user", "content": "我叫欧阳测试，咳嗽三天"}]}
CHAT = "/v1/chat/completions"


@pytest.fixture
def engine(chat_format: ChatFormat, pen: Pen) -> FakeEngine:
    return FakeEngine(chat_format, pen.thought("想想", "多休息。"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def entries(folder: Path) -> list[dict[str, Any]]:
    lines = [line for path in sorted(folder.glob("audit-*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    return [json.loads(line) for line in lines]


def keyed(folder: Path, content: bytes) -> str:
    secret = bytes.fromhex((folder / ".hash-key").read_text())
    return hmac.new(secret, content, "sha256").hexdigest()


async def test_an_entry_tells_who_when_what_and_the_verdict(engine, in_process: Factory, folder) -> None:
    async with in_process(engine, audit=str(folder), api_keys="one") as running:
        sent = json.dumps(ASK).encode()
        headers = {"authorization": "Bearer one", "x-request-id": "r-1", "content-type": "application/json"}
        whole = await running.client.post(CHAT, content=sent, headers=headers)
        streamed = await running.client.post(
            CHAT, json=ASK | {"stream": True}, headers=headers | {"x-request-id": "r-2"}
        )
        await running.client.post(CHAT, content=b"{", headers=headers | {"x-request-id": "r-3"})
        await running.client.post(CHAT, json=ASK, headers={"x-request-id": "r-4"})
        await running.client.get("/readyz")
    found = {e["request_id"]: e for e in entries(folder)}
    assert set(found) == {"r-1", "r-2", "r-3", "r-4"}
    one = found["r-1"]
    assert one["key"].startswith("setting-")
    assert (one["method"], one["route"], one["status"], one["complete"]) == ("POST", CHAT, 200, True)
    assert (one["model"], one["adapter"], one["verdict"]) == ("Qwen3-1.7B", None, "pass")
    assert one["judged"][0]["policy"] == whole.json()["safety"]["policy"]
    assert one["response_id"] == whole.json()["id"]
    assert one["output_tokens"] == whole.json()["usage"]["completion_tokens"]
    assert one["request_hmac_sha256"] == keyed(folder, sent)
    assert one["response_hmac_sha256"] == keyed(folder, whole.content)
    assert found["r-2"]["response_hmac_sha256"] == keyed(folder, streamed.content)
    assert (found["r-3"]["status"], found["r-3"]["error"]) == (400, "invalid_json")
    assert (found["r-4"]["status"], found["r-4"]["error"], found["r-4"]["key"]) == (401, "invalid_api_key", None)
    assert abs(datetime.fromisoformat(one["time"]).timestamp() - datetime.now(UTC).timestamp()) < 60


async def test_an_answer_that_was_cut_off_is_not_complete(engine, in_process: Factory, folder) -> None:
    async with in_process(engine, audit=str(folder), restart_backoff_s=30) as running:
        engine.dies_after = 3
        await running.chat(**ASK)
    (entry,) = entries(folder)
    assert (entry["status"], entry["error"]) == (503, "engine_unavailable")


async def test_the_fhir_form_is_an_audit_event(engine, in_process: Factory, folder) -> None:
    async with in_process(engine, audit=str(folder), audit_format="fhir") as running:
        await running.client.post(CHAT, json=ASK, headers={"x-request-id": "r-1"})
    (event,) = entries(folder)
    assert event["resourceType"] == "AuditEvent"
    assert {"type", "recorded", "agent", "source"} <= set(event), "FHIR R4 requires these"
    assert [agent["requestor"] for agent in event["agent"]] == [True, False]
    assert event["outcome"] == "0"
    assert event["entity"][0]["what"]["identifier"]["value"] == "r-1"
    assert {"type": "verdict", "valueString": "pass"} in event["entity"][0]["detail"]


def test_fhir_knows_no_null_and_no_empty_list() -> None:
    def check(value: Any) -> None:
        assert value not in (None, [], {}, "")
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(inner)

    check(audit_event(Trail("r", "GET", "/v1/models", status=401)))
    check(audit_event(Trail("r", "POST", CHAT, "k", "10.0.0.1", 200, judged=[Judged(0, "block", ("dosage",), "p")])))


def test_the_strictest_verdict_is_the_entrys() -> None:
    judged = [Judged(0, "pass", (), "p"), Judged(1, "block", ("dosage",), "p"), Judged(2, "amend", (), "p")]
    assert entry_json(Trail(judged=judged))["verdict"] == "block"


class Clock:
    def __init__(self, day: str) -> None:
        self.set(day)

    def set(self, day: str) -> None:
        self.now = datetime.fromisoformat(f"{day}T12:00:00+00:00").timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def opened(folder: Path) -> Iterator[tuple[AuditTrail, Clock, list[str]]]:
    clock, results = Clock("2026-01-01"), list[str]()
    trail = AuditTrail(folder, retention_days=2, on_entry=results.append, clock=clock)
    yield trail, clock, results
    trail.close()


async def test_a_file_a_day_and_old_ones_go(folder, opened) -> None:
    trail, clock, results = opened
    (folder / "audit-of-mine.jsonl").write_text("kept\n")
    for n, day in enumerate(("2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04")):
        clock.set(day)
        trail.add(Trail(day))
        await until(lambda n=n: len(results) == n + 1)  # type: ignore[misc]
    days = ["2026-01-02", "2026-01-03", "2026-01-04"]
    assert sorted(p.name for p in folder.glob("audit-2*")) == [f"audit-{day}.jsonl" for day in days]
    assert (folder / "audit-of-mine.jsonl").exists()
    assert stat.S_IMODE(day_file(folder, date(2026, 1, 4)).stat().st_mode) == 0o600


async def test_entries_survive_a_folder_that_is_gone_for_a_while(folder, opened) -> None:
    trail, _, results = opened
    shutil.rmtree(folder)
    for n in range(5):
        trail.add(Trail(str(n)))
    await until(lambda: trail.is_broken)
    folder.mkdir()
    await until(lambda: results.count("written") == 5)
    assert [e["request_id"] for e in entries(folder)] == list("01234")
    assert not trail.is_broken


def test_processes_share_a_folder(folder: Path) -> None:
    trails = [AuditTrail(folder) for _ in range(3)]
    writers = [threading.Thread(target=lambda t=t: [t.add(Trail("x" * 500)) for _ in range(200)]) for t in trails]  # type: ignore[misc]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    for trail in trails:
        trail.close()
    assert len(entries(folder)) == 600
    assert len({t.hasher().hexdigest() for t in trails}) == 1


async def test_what_must_be_recorded_is_not_answered_while_it_cannot_be(engine, in_process: Factory, folder) -> None:
    async with in_process(engine, audit=str(folder), audit_required=True) as running:
        assert (await running.chat(**ASK)).status_code == 200
        await until(lambda: len(entries(folder)) == 1)
        shutil.rmtree(folder)
        await running.chat(**ASK)
        await until(lambda: (running.metric("medthink_audit_entries_total", result="failed") or 0) > 0)
        error_of(await running.chat(**ASK), 503, "audit_unavailable")
        assert (await running.client.get("/livez")).status_code == 200
        folder.mkdir()
        await until(lambda: running.metric("medthink_audit_entries_total", result="written") == 3)
        assert (await running.chat(**ASK)).status_code == 200


async def test_by_default_answers_go_on_and_the_failure_is_counted(engine, in_process: Factory, folder) -> None:
    async with in_process(engine, audit=str(folder)) as running:
        shutil.rmtree(folder)
        await running.chat(**ASK)
        await until(lambda: (running.metric("medthink_audit_entries_total", result="failed") or 0) > 0)
        assert (await running.chat(**ASK)).status_code == 200
        folder.mkdir()
        await until(lambda: running.metric("medthink_audit_entries_total", result="written") == 2)
