"""GET /v1/models: what `model` may name. Qwen3-1.7B is always accepted, so that client code needs no change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from services.api.adapters.registry import AdapterRegistry
from services.api.errors import ModelNotFound

ALWAYS = "Qwen3-1.7B"


@dataclass(frozen=True, slots=True)
class ModelNames:
    """Names of the served model and of its adapters. `demo` is the notice of a model that is not medicine."""

    default: str
    created: int
    demo: str | None = None
    adapters: AdapterRegistry | None = None

    def base(self) -> list[str]:
        names = ["medthink-demo"] if self.demo else []
        return [*dict.fromkeys([*names, self.default, ALWAYS])]

    def all(self) -> list[str]:
        return [*self.base(), *(self.adapters.names() if self.adapters else [])]

    def is_base(self, name: str) -> bool:
        return name in self.base()

    def require(self, name: str | None) -> None:
        """Raises `ModelNotFound`; a request without a model gets the default one."""
        if name is None or self.is_base(name) or (self.adapters is not None and self.adapters.knows(name)):
            return
        raise ModelNotFound(
            f"the model {name[:120]!r} does not exist here: GET /v1/models lists the names, e.g. {self.default}",
            param="model",
        )


def _card(names: ModelNames, name: str, max_model_len: int | None) -> dict[str, Any]:
    card: dict[str, Any] = {"id": name, "object": "model", "created": names.created, "owned_by": "medthink"}
    parent = None if names.is_base(name) else names.default
    card |= {"root": names.default, "parent": parent, "max_model_len": max_model_len, "demo": names.demo is not None}
    if names.adapters is not None and parent is not None:
        adapter, _, pinned = name.partition("@")
        card["version"] = pinned or names.adapters.current(adapter)
    return card | ({"notice": names.demo} if names.demo else {})


def models_router(names: ModelNames, max_model_len: Callable[[], int | None]) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models", summary="The models that can be named", operation_id="models")
    async def models() -> Response:
        cards = [_card(names, name, max_model_len()) for name in names.all()]
        return Response(orjson.dumps({"object": "list", "data": cards}), media_type="application/json")

    @router.get("/v1/models/{model_id:path}", summary="One model", operation_id="model")
    async def model(model_id: str) -> Response:
        names.require(model_id)
        return Response(orjson.dumps(_card(names, model_id, max_model_len())), media_type="application/json")

    return router
