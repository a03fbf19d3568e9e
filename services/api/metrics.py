"""The API's own Prometheus metrics: names and labels in one place. vLLM's `vllm:*` stand beside them in /metrics.

No label ever holds a session, a user or a request.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_CHECK_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 1)


class Metrics:
    """Created once by the app; a test gives its own registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "medthink_requests",
            "HTTP requests by route, method and status",
            ["route", "method", "status"],
            registry=registry,
        )
        self.errors = Counter("medthink_errors", "Errors by stable code", ["code"], registry=registry)
        self.first_token_s = Histogram(
            "medthink_time_to_first_event_seconds", "Request read to first event", buckets=_SECONDS, registry=registry
        )
        self.turn_s = Histogram("medthink_turn_seconds", "Whole turns", ["stream"], buckets=_SECONDS, registry=registry)
        self.reasoning_tokens = Counter("medthink_reasoning_tokens", "Tokens of thought", registry=registry)
        self.answer_tokens = Counter("medthink_answer_tokens", "Tokens of answers", registry=registry)
        self.thinking_truncated = Counter(
            "medthink_thinking_truncated", "Thoughts that were closed for the answer's sake", registry=registry
        )
        self.finished = Counter("medthink_choices", "Choices by finish reason", ["finish_reason"], registry=registry)
        self.disconnects = Counter("medthink_client_disconnects", "Turns whose client went away", registry=registry)
        self.active = Gauge("medthink_active_choices", "Choices being generated or queued", registry=registry)
        self.ready = Gauge("medthink_ready", "1 when /readyz says yes", registry=registry)
        self.engine_restarts = Counter("medthink_engine_restarts", "Engine restarts after a crash", registry=registry)
        self.engine_start_s = Gauge("medthink_engine_start_seconds", "Latest start with warm-up", registry=registry)

        self.adapters = Counter(
            "medthink_adapter_changes", "Adapter versions by new state", ["state"], registry=registry
        )
        self.adapter_volume_up = Gauge("medthink_adapter_volume_up", "1 while the volume answers", registry=registry)

        self.safety_replies = Counter(
            "medthink_safety_replies", "Judged replies by verdict and mode", ["verdict", "mode"], registry=registry
        )
        self.safety_hits = Counter(
            "medthink_safety_hits",
            "Replies in which a rule was found broken",
            ["rule", "verdict", "mode"],
            registry=registry,
        )
        self.safety_check_s = Histogram(
            "medthink_safety_check_seconds", "Time to judge one sentence", buckets=_CHECK_SECONDS, registry=registry
        )
        self.safety_reloads = Counter(
            "medthink_safety_policy_reloads", "Changed policies by result", ["result"], registry=registry
        )

        self.audit_entries = Counter(
            "medthink_audit_entries",
            "Audit entries by result: written, failed (tried again), lost",
            ["result"],
            registry=registry,
        )
        self.key_reloads = Counter(
            "medthink_key_reloads", "Changed keys files by result: taken_up, refused", ["result"], registry=registry
        )

    def render(self) -> bytes:
        return generate_latest(self.registry)
