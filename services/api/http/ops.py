"""What operators and orchestrators ask: alive, ready, metrics, version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from services.api.engine.admission import Admission
from services.api.engine.supervisor import Supervisor
from services.api.metrics import Metrics

Versions = Callable[[], dict[str, Any]]


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")


def ops_router(supervisor: Supervisor, admission: Admission, metrics: Metrics, versions: Versions) -> APIRouter:
    router = APIRouter()

    @router.get("/livez", summary="The process answers", operation_id="livez")
    async def livez() -> Response:
        return _json({"status": "alive"})

    @router.get("/readyz", summary="New requests will be served", operation_id="readyz", responses={503: {}})
    async def readyz() -> Response:
        ready = supervisor.is_ready and admission.is_open
        what = supervisor.what if admission.is_open else "shutting down"
        return _json({"status": "ready" if ready else what}, 200 if ready else 503)

    @router.get(
        "/health",
        summary="Same as /readyz, the name that vLLM's users know",
        operation_id="health",
        responses={503: {}},
    )
    async def health() -> Response:
        return await readyz()

    @router.get("/metrics", summary="Prometheus metrics", operation_id="metrics")
    async def prometheus() -> Response:
        metrics.active.set(admission.active)
        metrics.ready.set(supervisor.is_ready and admission.is_open)
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/version", summary="Versions of the service, the engine and the model", operation_id="version")
    async def version() -> Response:
        return _json(versions())

    @router.get("/", summary="Where to go from here", operation_id="index")
    async def index() -> Response:
        return _json(
            {**versions(), "try": ["/v1/models", "POST /v1/chat/completions", "/readyz", "/metrics", "/openapi.json"]}
        )

    return router
