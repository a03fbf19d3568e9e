"""Reading a request body: bounded, JSON, and errors that name the field."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from services.api.errors import InvalidJson, InvalidRequest, RequestTooLarge, UnsupportedMediaType

Model = TypeVar("Model", bound=BaseModel)


async def read_bytes(request: Request, limit: int) -> bytes:
    """The whole body; raises `RequestTooLarge` as soon as it is longer than `limit` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"the request body is larger than {limit} bytes: send fewer or shorter messages")


async def read_model(request: Request, model: type[Model], limit: int) -> Model:
    """The body as `model`. Raises `InvalidJson`, `InvalidRequest`, `RequestTooLarge`, `UnsupportedMediaType`."""
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedMediaType(
            f"the body must be application/json, not {kind[:80]}: send the header 'Content-Type: application/json'"
        )
    body = await read_bytes(request, limit)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from error


def invalid(error: ValidationError) -> InvalidRequest:
    """The first problem of a body, as the client's error."""
    # Of a union, pydantic reports every branch; the deepest place is the branch that fitted best.
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    if problems[0]["type"] == "json_invalid":
        return InvalidJson(f"the body is not valid JSON: {problems[0]['msg'].removeprefix('Invalid JSON: ')}")
    worst = problems[0]
    same_field = [p for p in problems if p["loc"][:1] == worst["loc"][:1]]
    chosen = max(same_field, key=lambda p: len(p["loc"]))
    param = _name(chosen["loc"])
    message = f"{param or 'the body'}: {chosen['msg']}; GET /openapi.json describes every field"
    return InvalidRequest(message, param=param)


def _name(loc: tuple[Any, ...]) -> str | None:
    """`messages[0].content` for pydantic's place; names of union branches are left out."""
    name = ""
    for part in loc:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part.isidentifier() and not part[:1].isupper() and part not in ("str", "int", "float", "bool"):
            name += f".{part}" if name else part
    return name or None
