"""Traces: GenAI's conventions, the caller's trace gone on with, no text, and nothing imported until switched on."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.api.audit.trail import Judged, Trail
from services.api.tracing import Tracing
from tests.fakes import ROOT

TURN = Trail(
    "r-1", "POST", "/v1/chat/completions", "k1", None, 200, True, None, 1000.0, 2.0,
    model="Qwen3-1.7B", adapter="ward", adapter_version="abc", response_id="chatcmpl-1", turn_began=1000.5,
    first_event=1000.75, turn_ended=1001.5, input_tokens=7, output_tokens=5, reasoning_tokens=2,
    finish_reasons=["stop"], judged=[Judged(0, "pass", (), "p")],
)  # fmt: skip
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(spans: InMemorySpanExporter) -> Tracing:
    return Tracing("", "1", spans)


def test_a_turn_is_a_span_below_its_request(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    tracing.record(TURN, "")
    turn, server = spans.get_finished_spans()
    assert (server.name, server.kind.name) == ("POST /v1/chat/completions", "SERVER")
    assert turn.name == "chat ward@abc"
    assert turn.parent is not None
    assert turn.parent.span_id == server.context.span_id
    assert (turn.start_time, turn.end_time) == (1_000_500_000_000, 1_001_500_000_000)
    assert (server.start_time, server.end_time) == (1_000_000_000_000, 1_002_000_000_000)
    assert turn.attributes is not None
    assert dict(turn.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "medthink",
        "gen_ai.request.model": "Qwen3-1.7B",
        "gen_ai.response.model": "ward@abc",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 5,
        "medthink.usage.reasoning_tokens": 2,
        "medthink.safety.verdict": "pass",
    }


def test_the_callers_trace_goes_on(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    tracing.record(TURN, PARENT)
    for span in spans.get_finished_spans():
        assert f"{span.context.trace_id:032x}" == "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize("hostile", ["", "x", "00-0-0-0", "00-" + "z" * 32 + "-" + "z" * 16 + "-01", "\u75c5" * 100])
def test_a_trace_that_makes_no_sense_begins_a_new_one(tracing, spans: InMemorySpanExporter, hostile) -> None:
    tracing.record(TURN, hostile)
    assert all(span.context.is_valid for span in spans.get_finished_spans())
    assert spans.get_finished_spans()[1].parent is None


def test_failures_are_marked(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    tracing.record(replace(TURN, status=503, error="engine_unavailable", turn_ended=None), "")
    turn, server = spans.get_finished_spans()
    assert [turn.status.status_code.name, server.status.status_code.name] == ["ERROR", "ERROR"]
    assert (server.attributes or {})["error.type"] == "engine_unavailable"
    spans.clear()
    tracing.record(Trail("r", "GET", "/v1/models", status=404, complete=True), "")
    (server,) = spans.get_finished_spans()
    assert server.status.status_code.name == "UNSET", "a client's mistake is no error of the server's"


def test_nothing_is_imported_until_it_is_switched_on() -> None:
    code = "import sys, services.api.app; sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60).returncode == 0
