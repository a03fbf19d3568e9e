"""The OpenAPI document: request schema and error shape, which routes that read raw bodies cannot tell by themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from services.api.http.responses_request import ResponsesRequest
from services.api.http.schemas import ChatRequest
from services.api.http.sessions import SessionRequest

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code", "request_id"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
                "request_id": {"type": "string"},
            },
        }
    },
}
_ERROR_STATUSES = {
    "400": "The request is wrong",
    "401": "No valid key",
    "403": "The key lacks the scope",
    "404": "No such thing",
    "405": "Wrong method",
    "409": "In conflict with what is stored, or with a turn that runs",
    "413": "Body too large",
    "415": "Not JSON",
    "429": "The key's limit: see Retry-After",
    "503": "Not now: see Retry-After",
    "504": "Took too long",
}

_BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/sessions": SessionRequest,
}
_STREAMS = ("/v1/chat/completions", "/v1/responses")


def describe(app: FastAPI) -> None:
    """Replaces the app's document by one with request bodies and errors."""

    def document() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = _complete(get_openapi(title=app.title, version=app.version, routes=app.routes))
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for path, model in _BODIES.items():
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
        body = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
        document["paths"][path]["post"]["requestBody"] = {"required": True, "content": {"application/json": body}}
    schemas["Error"] = _ERROR
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            responses.pop("422", None)
            for status, meaning in _ERROR_STATUSES.items():
                if path.startswith("/v1/"):
                    responses[status] = {"description": meaning, "content": error}
    for path in _STREAMS:
        document["paths"][path]["post"]["responses"]["200"]["content"] = {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}},
        }
    return document
