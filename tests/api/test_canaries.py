"""What patients and clients wrote is found nowhere: in no log, metric, trace or audit, and in no error but the caller's own."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.api import app, logs
from services.api.logs import JsonFormatter, TextFormatter, redacted
from services.api.tracing import Tracing
from services.contract.chat_format import ChatFormat
from tests.fakes import FakeEngine, Pen
from tests.running import Factory

NAME, ID_NUMBER, PHONE, MAIL = "欧阳测试甲", "11010519491231002X", "13912345678", "ouyang@example.org"
KEY, OTHER_KEY, WORD = "canary-key-0123456789", "sk-canary-wrong-key", "zebrafish-canary"
TEXT = f"{NAME}，身份证{ID_NUMBER}，电话{PHONE}，邮箱{MAIL}，{WORD}"
CANARIES = (NAME, ID_NUMBER, PHONE, MAIL, KEY, OTHER_KEY, WORD)
CHAT = "/v1/chat/completions"


@pytest.fixture
def written() -> Iterator[StringIO]:
    """Everything that the formatters make of every record, from debug up, as JSON and as text, set up as the server does."""
    out, root = StringIO(), logging.getLogger()
    handlers = []
    for formatter in (JsonFormatter(), TextFormatter(False)):
        handler = logging.StreamHandler(out)
        handler.setFormatter(formatter)
        handlers.append(handler)
        root.addHandler(handler)
    loggers = [root, *(logging.getLogger(name) for name in logs._QUIET)]
    before = [logger.level for logger in loggers]
    root.setLevel(logging.DEBUG)
    logs.quiet_libraries(logging.DEBUG)
    try:
        yield out
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)


def message(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


async def ask_everything(client: httpx.AsyncClient) -> list[httpx.Response]:
    """Good and bad requests on every route, each with the canaries in every place that takes a text."""
    good = {"authorization": f"Bearer {KEY}"}
    ask = message(TEXT)
    posts: list[tuple[str, Any]] = [
        (CHAT, ask),
        (CHAT, ask | {"stream": True}),
        (CHAT, ask | {"session_id": "s-1", "user": NAME, "metadata": {"name": NAME}}),
        (CHAT, ask | {"session_id": TEXT}),
        (CHAT, ask | {"model": TEXT}),
        (CHAT, ask | {"temperature": TEXT}),
        (CHAT, ask | {"stop": [TEXT] * 100}),
        (CHAT, {"messages": [{"role": TEXT, "content": TEXT}]}),
        (
            CHAT,
            ask | {"response_format": {"type": "json_schema", "json_schema": {"name": TEXT, "schema": {"type": TEXT}}}},
        ),
        ("/v1/responses", {"input": TEXT, "instructions": TEXT, "metadata": {"name": NAME}}),
        ("/v1/responses", {"input": TEXT, "stream": True}),
        ("/v1/responses", {"input": TEXT, "previous_response_id": TEXT}),
        ("/v1/sessions", {"id": "s-2", "metadata": {"name": TEXT}, "system_prompt": TEXT}),
        ("/v1/sessions", {"id": TEXT}),
    ]
    answers = [await client.post(path, json=body, headers=good) for path, body in posts]
    raw = [b"{" + TEXT.encode(), TEXT.encode(), b'{"messages": "\xff' + TEXT.encode()]
    answers += [await client.post(CHAT, content=r, headers=good | {"content-type": "application/json"}) for r in raw]
    for path in (
        f"/v1/sessions/{TEXT}",
        f"/v1/models/{TEXT}",
        f"/{TEXT}",
        f"/v1/sessions?cursor={TEXT}",
        "/v1/sessions/s-1",
    ):
        answers.append(await client.get(path, headers=good))
    answers.append(await client.delete("/v1/sessions/s-1", headers=good))
    hostile = {"authorization": f"Bearer {OTHER_KEY}", "x-request-id": TEXT.encode(), "user-agent": TEXT.encode()}
    answers.append(await client.post(CHAT, json=ask, headers=hostile))
    return answers


async def test_canaries_are_found_nowhere(
    chat_format: ChatFormat, pen: Pen, in_process: Factory, tmp_path: Path, written, monkeypatch
) -> None:
    spans = InMemorySpanExporter()
    monkeypatch.setattr(app, "Tracing", lambda endpoint, version: Tracing(endpoint, version, spans))
    engine = FakeEngine(chat_format, pen.thought(f"患者{TEXT}", f"{TEXT}，多休息。"))
    options = {
        "database": str(tmp_path / "m.db"),
        "audit": str(tmp_path / "audit"),
        "otlp_endpoint": "http://127.0.0.1:9",
    }
    async with in_process(engine, api_keys=KEY, safety_records=str(tmp_path / "records"), **options) as running:
        answers = await ask_everything(running.client)
        metrics = await running.client.get("/metrics", headers={"authorization": f"Bearer {KEY}"})
    kept = {
        "log": written.getvalue(),
        "metrics": metrics.text,
        "records": (tmp_path / "records").read_text("utf-8"),
        "audit": "".join(p.read_text("utf-8") for p in (tmp_path / "audit").glob("*.jsonl")),
        "traces": "".join(span.to_json() for span in spans.get_finished_spans()),
    }
    assert {a.status_code for a in answers} >= {200, 400, 401, 404}
    assert all(len(text) > 500 for text in kept.values()), "there is something to search"
    found = [
        (place, canary)
        for place, text in kept.items()
        for canary in CANARIES
        if canary in text or escaped(canary) in text
    ]
    assert found == []
    for answer in answers:
        assert KEY not in answer.text
        assert OTHER_KEY not in answer.text


def escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


async def test_an_exception_that_quotes_a_patient_is_told_without_the_quote(
    chat_format: ChatFormat, pen: Pen, in_process: Factory, tmp_path: Path, written
) -> None:
    def breaks(request: Any) -> list[int]:
        try:
            raise KeyError(TEXT)
        except KeyError as error:
            raise ValueError(f"cannot read {TEXT!r}") from error

    engine = FakeEngine(chat_format, pen.thought("想", "答"))
    async with in_process(engine, audit=str(tmp_path / "audit")) as running:
        engine.reply = breaks
        answers = [await running.chat(**message(TEXT)), await running.chat(**message(TEXT), stream=True)]
    log = written.getvalue()
    assert [a.status_code for a in answers] == [500, 500]
    assert "ValueError: (message withheld)" in log, "the kind and the place of the error are there"
    assert "in breaks" in log
    for canary in CANARIES:
        assert canary not in log + "".join(a.text for a in answers)


@pytest.mark.parametrize(
    "secret",
    [
        "Bearer abcdef123456", "authorization: basic dXNlcjpwYXNz", "mt_" + "a" * 43, ID_NUMBER, f"ID:{ID_NUMBER}。",
        PHONE, "+86 139 1234 5678", "139-1234-5678", MAIL, "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
    ],
)  # fmt: skip
def test_what_can_be_recognised_is_taken_out_of_any_line(secret: str) -> None:
    shown = redacted(f"a library said: {secret} and went on")
    assert secret.split()[-1].strip("。") not in shown
    assert shown.startswith("a library said: ")
    assert shown.endswith(" and went on")


@pytest.mark.parametrize(
    "harmless",
    [
        "request req_0123456789abcdef0123456789abcdef", "1,605,632 of 1,722,180,608", "took 13.912345678 s", "port 18000",
        "2026-11-24T12:00:00.123Z", "sha256 13912345678abcdef0", "model Qwen3-1.7B", "ward@abc123",
    ],
)  # fmt: skip
def test_what_is_harmless_stays(harmless: str) -> None:
    assert redacted(harmless) == harmless


def test_at_the_start_messages_are_told_in_full() -> None:
    assert logs.request_id.get() == "-"
    assert "no such file" in logs.trace_of(OSError("no such file"))
