"""POST /v1/responses as OpenAI defines it, read into the chat request that the same engine runs. Pure."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.api.errors import InvalidRequest, UnsupportedParameter
from services.api.http.body import invalid
from services.api.http.schemas import MAX_MESSAGES, ChatRequest, Finite

# What both APIs call by one name and mean alike; MedThink's own fields are among them.
_SAME = (
    "model", "stream", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "seed", "stop", "stop_token_ids", "ignore_eos", "logit_bias", "allowed_token_ids", "user",
    "parallel_tool_calls", "structured_outputs", "enable_thinking", "include_reasoning", "thinking_budget",
    "annotate_reasoning", "reasoning", "chat_template_kwargs", "priority",
)  # fmt: skip


class ResponsesRequest(BaseModel):
    """POST /v1/responses. Sampling fields and MedThink's own are those of chat completions."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    model: str | None = None
    input: str | list[dict[str, Any]] = Field(description="the new message, or a list of messages, calls and outputs")
    instructions: str | None = Field(None, description="system prompt of this response; it is not carried over")
    previous_response_id: str | None = Field(None, description="go on from a stored response")
    store: bool | None = Field(None, description="keep the response, so that another can go on from it (default true)")
    stream: bool | None = False
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: Finite | None = None
    top_p: Finite | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    background: bool | None = None
    conversation: Any = None
    truncation: Literal["auto", "disabled"] | None = None


def to_chat(request: ResponsesRequest) -> ChatRequest:
    """The chat request that means the same. Raises `InvalidRequest` and `UnsupportedParameter`."""
    for name in ("background", "conversation", "prompt"):
        if getattr(request, name, None):
            raise UnsupportedParameter(f"{name} is not supported here: leave it out", param=name)
    given = request.model_dump(exclude_unset=True)
    body: dict[str, Any] = {name: given[name] for name in _SAME if given.get(name) is not None}
    body["messages"] = _messages(request.input)
    if request.max_output_tokens is not None:
        body["max_tokens"] = request.max_output_tokens
    if request.tools:
        body["tools"] = [_tool(tool, n) for n, tool in enumerate(request.tools)]
    if request.tool_choice is not None:
        body["tool_choice"] = _tool_choice(request.tool_choice)
    if request.text and (wanted := _response_format(request.text)):
        body["response_format"] = wanted
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        raise invalid(error) from error


def _messages(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not items or len(items) > MAX_MESSAGES:
        raise InvalidRequest(f"input must have 1 to {MAX_MESSAGES} items", param="input")
    messages: list[dict[str, Any]] = []
    for n, item in enumerate(items):
        _add(messages, item, n)
    if not messages:
        raise InvalidRequest("input has no message: add one of the user's", param="input")
    return messages


def _add(messages: list[dict[str, Any]], item: dict[str, Any], n: int) -> None:
    kind = item.get("type") or "message"
    if kind == "message":
        messages.append({"role": item.get("role"), "content": _content(item.get("content"), n)})
    elif kind == "function_call":
        call = {"type": "function", "function": {"name": item.get("name"), "arguments": item.get("arguments", "{}")}}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = item.get("output")
        messages.append({"role": "tool", "content": output if isinstance(output, str) else _content(output, n)})
    elif kind != "reasoning":  # thoughts do not go into prompts
        raise UnsupportedParameter(
            f"input[{n}]: items of type {str(kind)[:40]!r} are not supported: send messages, function_call and "
            "function_call_output",
            param=f"input[{n}].type",
        )


def _content(content: Any, n: int) -> Any:
    if not isinstance(content, list):
        return content
    texts = []
    for k, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
        if kind not in ("input_text", "output_text", "text", "refusal") or not isinstance(text, str):
            raise UnsupportedParameter(
                f"input[{n}].content[{k}]: parts of type {str(kind)[:40]!r} are not supported, only text",
                param=f"input[{n}].content[{k}].type",
            )
        texts.append(text)
    return "\n".join(texts)


def _tool(tool: dict[str, Any], n: int) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise UnsupportedParameter(
            f"tools[{n}]: tools of type {str(tool.get('type'))[:40]!r} are not supported, only functions",
            param=f"tools[{n}].type",
        )
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type" and v is not None}}


def _tool_choice(choice: str | dict[str, Any]) -> Any:
    if isinstance(choice, str):
        return choice
    return {"type": choice.get("type"), "function": {"name": choice.get("name")}}


def _response_format(text: dict[str, Any]) -> dict[str, Any] | None:
    wanted = text.get("format")
    if wanted is None:
        return None
    if not isinstance(wanted, dict):
        raise InvalidRequest("text.format must be an object", param="text.format")
    if wanted.get("type") != "json_schema":
        return {"type": wanted.get("type")}
    named = {k: wanted[k] for k in ("name", "schema", "strict") if wanted.get(k) is not None}
    return {"type": "json_schema", "json_schema": named}
