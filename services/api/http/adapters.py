"""GET /v1/adapters: every adapter that this process has met, its versions, their states and reasons."""

from __future__ import annotations

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from services.api.adapters.registry import AdapterRegistry


def adapters_router(registry: AdapterRegistry | None) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/adapters", summary="Adapters: state, version, reason", operation_id="adapters")
    async def adapters() -> Response:
        data = registry.describe() if registry is not None else []
        return Response(orjson.dumps({"object": "list", "data": data}), media_type="application/json")

    return router
