"""OpenTelemetry traces with the GenAI conventions, by option. Spans are written from a request's trail when it has ended:
nothing is done while tokens flow, and no text is there that could get into one.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/ and https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from services.api.audit.entry import worst_verdict
from services.api.audit.trail import Trail

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_NS = 1_000_000_000


class Tracing:
    """Two spans a request: the server's, and under it the inference where there was one. Sent by a thread of their own."""

    def __init__(self, endpoint: str, version: str, exporter: SpanExporter | None = None) -> None:
        """`endpoint`: an OTLP/HTTP collector's base URL. `exporter` stands in for the one that sends there.

        The packages are imported here, by whoever switches tracing on. OTEL_EXPORTER_OTLP_HEADERS and its kin go on working.
        """
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        processor: SpanProcessor
        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces"))
        else:
            processor = SimpleSpanProcessor(exporter)
        resource = Resource.create({"service.name": "medthink", "service.version": version})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("medthink", version)

    def record(self, trail: Trail, traceparent: str) -> None:
        """Writes a request's spans, below the caller's where `traceparent` (W3C) names one."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent}) if traceparent else None
        server = self._tracer.start_span(
            f"{trail.method} {trail.route}",
            context=parent,
            kind=trace.SpanKind.SERVER,
            start_time=int(trail.began * _NS),
            attributes=_server_attributes(trail),
        )
        if trail.status >= 500 or not trail.complete:
            server.set_status(trace.StatusCode.ERROR)
        if trail.turn_began is not None:
            self._record_turn(trail, trace.set_span_in_context(server, parent))
        server.end(int((trail.began + trail.seconds) * _NS))

    def _record_turn(self, trail: Trail, context: Any) -> None:
        from opentelemetry import trace

        assert trail.turn_began is not None
        model = _model(trail)
        span = self._tracer.start_span(
            f"chat {model}" if model else "chat",
            context=context,
            kind=trace.SpanKind.INTERNAL,  # the model runs in this service
            start_time=int(trail.turn_began * _NS),
            attributes=_turn_attributes(trail),
        )
        if trail.first_event is not None:
            span.add_event("first_event", timestamp=int(trail.first_event * _NS))
        if trail.turn_ended is None:
            span.set_status(trace.StatusCode.ERROR)
        span.end(int((trail.turn_ended or trail.began + trail.seconds) * _NS))

    def close(self) -> None:
        """Sends what waits, and ends the thread."""
        self._provider.shutdown()


def _model(trail: Trail) -> str | None:
    return f"{trail.adapter}@{trail.adapter_version}" if trail.adapter else trail.model


def _server_attributes(trail: Trail) -> dict[str, Any]:
    found: dict[str, Any] = {
        "http.request.method": trail.method,
        "http.route": trail.route,
        "http.response.status_code": trail.status,
        "medthink.request_id": trail.request_id,
    }
    return found | {k: v for k, v in {"medthink.key": trail.caller, "error.type": trail.error}.items() if v is not None}


def _turn_attributes(trail: Trail) -> dict[str, Any]:
    found = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "medthink",
        "gen_ai.request.model": trail.model,
        "gen_ai.response.model": _model(trail),
        "gen_ai.response.id": trail.response_id,
        "gen_ai.response.finish_reasons": trail.finish_reasons or None,
        "gen_ai.usage.input_tokens": trail.input_tokens,
        "gen_ai.usage.output_tokens": trail.output_tokens,
        "medthink.usage.reasoning_tokens": trail.reasoning_tokens,
        "medthink.safety.verdict": worst_verdict(trail),
        "error.type": trail.error,
    }
    return {name: value for name, value in found.items() if value is not None}
