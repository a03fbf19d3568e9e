"""From the wire to a turn: what OpenAI's and vLLM's fields mean here. Pure; every refusal is one of `errors`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from services.api.engine.base import Grammar, Sampling
from services.api.errors import ContradictoryParameters, InvalidRequest, UnsupportedParameter
from services.api.http.schemas import ChatMessage, ChatRequest, NamedToolChoice, TextPart, Tool
from services.api.thinking.options import ThinkingOptions, read_thinking_options
from services.api.tools import ForcedCall, force_call
from services.api.turn import TurnRequest
from services.contract.chat_format import Message, ToolCall, strip_framing, template_json

# What vLLM's GPU sampler has room for (v1/worker/gpu/sample/logit_bias.py); beyond it one request ends the whole engine.
MOST_LISTED_IDS = 1024
MOST_STOP_IDS = 64  # of its 128: ours are among them
_TEMPERATURE_FLOOR = 1e-2  # below it vLLM itself warns of numerical trouble; 0 stays greedy


def read_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """The conversation, cleaned: reasoning that clients send back inside assistant texts is taken out of them."""
    turns = [_read_message(message, n) for n, message in enumerate(messages)]
    if all(not turn.content.strip() and not turn.tool_calls for turn in turns):
        raise InvalidRequest("messages hold no text: send at least one message with content", param="messages")
    return turns


def _read_message(message: ChatMessage, n: int) -> Message:
    text = _text(message, n)
    if message.role == "assistant":
        inline, text = strip_framing(text)
        given = message.reasoning_content if message.reasoning_content is not None else message.reasoning
        return Message(
            role="assistant",
            content=text,
            reasoning_content=given if given is not None else inline,
            tool_calls=tuple(_tool_call(c.function.name, c.function.arguments) for c in message.tool_calls or ()),
        )
    if message.content is None and message.role in ("user", "system", "developer"):
        raise InvalidRequest(
            f"messages[{n}].content: a {message.role} message needs text", param=f"messages[{n}].content"
        )
    roles = {"developer": "system", "function": "tool"}
    return Message.model_validate({"role": roles.get(message.role, message.role), "content": text})


def _text(message: ChatMessage, n: int) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    texts = []
    for k, part in enumerate(message.content):
        if not isinstance(part, TextPart):
            raise UnsupportedParameter(
                f"messages[{n}].content[{k}]: parts of type {part.type[:40]!r} are not supported, only text",
                param=f"messages[{n}].content[{k}].type",
            )
        texts.append(part.text)
    return "\n".join(texts)


def _tool_call(name: str, arguments: str | dict[str, Any]) -> ToolCall:
    return ToolCall(name=name, arguments=arguments if isinstance(arguments, str) else template_json(arguments))


def tool_specs(request: ChatRequest) -> list[dict[str, Any]]:
    """The tools as the prompt shows them: what the client sent, empty with `tool_choice: none`."""
    if request.tool_choice == "none":
        return []
    return [_tool_spec(tool) for tool in request.tools or ()]


def _tool_spec(tool: Tool) -> dict[str, Any]:
    return tool.model_dump(exclude_unset=True)


def build_turn(
    request: ChatRequest,
    request_id: str,
    messages: Sequence[Message],
    prompt_ids: Sequence[int],
    room: int,
    vocab_size: int,
    defaults: Mapping[str, Any],
) -> TurnRequest:
    """The turn of a request.

    `room`: most tokens that a reply can have; `defaults`: the model's own sampling values, used where the client names none.

    Raises `InvalidRequest` and its kinds.
    """
    _refuse_unsupported(request)
    tools = tool_specs(request)
    forced = _forced_call(request, tools)
    grammar = _grammar(request)
    if forced is not None and grammar is not None:
        raise ContradictoryParameters(
            "a forced tool call and a response format both constrain the answer: send one of the two",
            param="tool_choice",
        )
    thinking = thinking_options(request, messages)
    return TurnRequest(
        request_id=request_id,
        prompt_ids=prompt_ids,
        sampling=dataclasses.replace(_sampling(request, room, vocab_size, defaults), grammar=grammar),
        thinking=thinking,
        stop=_stop_strings(request),
        include_stop=bool(request.include_stop_str_in_output),
        offers_tools=bool(tools) and forced is None,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        forced_call=forced,
        choices=request.n or 1,
    )


def thinking_options(request: ChatRequest, messages: Sequence[Message]) -> ThinkingOptions:
    """How to think, and what of it to show; raises `ContradictoryParameters` and `InvalidRequest`."""
    return read_thinking_options(request.model_dump(include=set(_THINKING_FIELDS)), messages)


_THINKING_FIELDS = (
    "enable_thinking", "return_reasoning", "include_reasoning", "thinking_budget", "thinking_token_budget",
    "reasoning_effort", "chat_template_kwargs", "reasoning", "thinking", "think", "annotate_reasoning",
)  # fmt: skip


def reply_tokens(request: ChatRequest) -> int | None:
    """Most tokens that the reply may have, as far as the client says."""
    return request.max_tokens or request.max_completion_tokens


def _refuse_unsupported(request: ChatRequest) -> None:
    """Fields whose silent neglect would change what the reply means."""
    for name in ("prompt_logprobs", "echo", "continue_final_message"):
        if getattr(request, name):
            raise UnsupportedParameter(f"{name} is not supported here: leave it out", param=name)
    if request.add_generation_prompt is False:
        raise UnsupportedParameter(
            "add_generation_prompt: false is not supported here: leave it out", param="add_generation_prompt"
        )


def _sampling(request: ChatRequest, room: int, vocab_size: int, defaults: Mapping[str, Any]) -> Sampling:
    if (
        None not in (request.max_tokens, request.max_completion_tokens)
        and request.max_tokens != request.max_completion_tokens
    ):
        raise ContradictoryParameters(
            "max_tokens and max_completion_tokens differ: send one of the two", param="max_completion_tokens"
        )
    wanted = reply_tokens(request) or room
    temperature = _first(request.temperature, defaults.get("temperature"), 1.0)
    # Within the context, as OpenAI does it: what does not fit ends with finish_reason "length".
    max_tokens = max(1, min(wanted, room))
    if (request.min_tokens or 0) > max_tokens:
        raise InvalidRequest(
            f"min_tokens may be at most {max_tokens}, the most tokens of this reply", param="min_tokens"
        )
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=request.min_tokens or 0,
        temperature=temperature if temperature == 0 else max(temperature, _TEMPERATURE_FLOOR),
        top_p=_first(request.top_p, defaults.get("top_p"), 1.0),
        top_k=max(0, _first(request.top_k, defaults.get("top_k"), 0)),
        min_p=_first(request.min_p, defaults.get("min_p"), 0.0),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=_first(request.repetition_penalty, defaults.get("repetition_penalty"), 1.0),
        seed=request.seed,
        ignore_eos=bool(request.ignore_eos),
        stop_token_ids=_ids("stop_token_ids", request.stop_token_ids, vocab_size),
        logit_bias=_logit_bias(request.logit_bias, vocab_size),
        allowed_token_ids=_ids("allowed_token_ids", request.allowed_token_ids, vocab_size),
        logprobs=_logprobs(request),
    )


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _ids(name: str, ids: Sequence[int] | None, vocab_size: int) -> tuple[int, ...]:
    if ids is not None and not ids and name == "allowed_token_ids":
        raise InvalidRequest(f"{name} is empty: leave it out, or name at least one token", param=name)
    most = MOST_STOP_IDS if name == "stop_token_ids" else MOST_LISTED_IDS
    if len(ids or ()) > most:
        raise InvalidRequest(f"{name} may have at most {most} token ids, and has {len(ids or ())}", param=name)
    for token_id in ids or ():
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(f"{name}: {token_id} is no token id, they go from 0 to {vocab_size - 1}", param=name)
    return tuple(ids or ())


def _logit_bias(bias: Mapping[str, float] | None, vocab_size: int) -> dict[int, float]:
    found: dict[int, float] = {}
    if len(bias or {}) > MOST_LISTED_IDS:
        raise InvalidRequest(f"logit_bias may have at most {MOST_LISTED_IDS} token ids", param="logit_bias")
    for key, value in (bias or {}).items():
        if not key.isascii() or not key.isdigit() or len(key) > 9 or int(key) >= vocab_size:
            raise InvalidRequest(
                f"logit_bias: {key[:20]!r} is no token id, they go from 0 to {vocab_size - 1}", param="logit_bias"
            )
        if not -100 <= value <= 100:
            raise InvalidRequest("logit_bias: values go from -100 to 100", param="logit_bias")
        found[int(key)] = value
    return found


def _logprobs(request: ChatRequest) -> int | None:
    if request.top_logprobs and not request.logprobs:
        raise ContradictoryParameters("top_logprobs needs logprobs: true", param="top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None


def _stop_strings(request: ChatRequest) -> tuple[str, ...]:
    strings = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if any(not s for s in strings):
        raise InvalidRequest("stop: an empty string would stop every answer at once: leave it out", param="stop")
    if len(strings) > 64 or any(len(s) > 1024 for s in strings):
        raise InvalidRequest("stop: at most 64 strings of at most 1024 characters", param="stop")
    return tuple(strings)


def _grammar(request: ChatRequest) -> Grammar | None:
    named = [g for g in (_response_format(request), _structured_outputs(request)) if g is not None]
    if len(named) > 1:
        raise ContradictoryParameters(
            "response_format and structured_outputs both constrain the answer: send one of the two",
            param="response_format",
        )
    return named[0] if named else None


def _response_format(request: ChatRequest) -> Grammar | None:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Grammar("json_object")
    if wanted.json_schema is None or wanted.json_schema.json_schema is None:
        raise InvalidRequest(
            "response_format of type json_schema needs json_schema.schema", param="response_format.json_schema.schema"
        )
    return Grammar("json_schema", wanted.json_schema.json_schema)


def _structured_outputs(request: ChatRequest) -> Grammar | None:
    wanted = request.structured_outputs
    if wanted is None:
        return None
    options: list[Grammar] = []
    if wanted.json_ is not None:
        options.append(Grammar("json_schema", _schema(wanted.json_)))
    if wanted.json_object:
        options.append(Grammar("json_object"))
    if wanted.regex is not None:
        options.append(Grammar("regex", wanted.regex))
    if wanted.choice is not None:
        if not wanted.choice:
            raise InvalidRequest("structured_outputs.choice is empty", param="structured_outputs.choice")
        options.append(Grammar("choice", wanted.choice))
    if wanted.grammar is not None:
        options.append(Grammar("grammar", wanted.grammar))
    if len(options) > 1:
        raise ContradictoryParameters("structured_outputs takes one kind of constraint", param="structured_outputs")
    return options[0] if options else None


def _schema(value: dict[str, Any] | str) -> dict[str, Any]:
    try:
        # pydantic's reader: a body's limit on nesting holds for text inside it as well.
        schema = from_json(value) if isinstance(value, str) else value
    except ValueError as error:
        raise InvalidRequest(
            f"structured_outputs.json is not JSON: {error}", param="structured_outputs.json"
        ) from error
    if not isinstance(schema, dict):
        raise InvalidRequest("structured_outputs.json must be a JSON schema object", param="structured_outputs.json")
    return schema


def _forced_call(request: ChatRequest, tools: Sequence[dict[str, Any]]) -> ForcedCall | None:
    choice = request.tool_choice
    if choice in (None, "none", "auto"):
        return None
    if not tools:
        raise InvalidRequest("tool_choice asks for a call but tools is empty: send tools", param="tools")
    parallel = request.parallel_tool_calls is not False
    if not isinstance(choice, NamedToolChoice):
        return force_call(tools, None, parallel)
    if choice.function.name not in [tool["function"]["name"] for tool in tools]:
        raise InvalidRequest(
            f"tool_choice names {choice.function.name[:80]!r}, which is not in tools", param="tool_choice"
        )
    return force_call(tools, choice.function.name, parallel)
