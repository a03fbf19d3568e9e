"""The chat request as OpenAI and vLLM define it, and MedThink's own fields. Unknown fields are kept out, never refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Finite = Annotated[float, Field(allow_inf_nan=False)]
MAX_MESSAGES = 4096


class _Wire(BaseModel):
    # strict: "0.5" is no temperature and 1 is no boolean, as with OpenAI. extra: clients and routers add fields.
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class TextPart(_Wire):
    type: Literal["text", "input_text"]
    text: str


class OtherPart(_Wire):
    """An image, audio or file part: named so that the refusal can name it."""

    type: str


class FunctionCall(_Wire):
    name: str = Field(min_length=1, max_length=256)
    arguments: str | dict[str, Any] = "{}"


class MessageToolCall(_Wire):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(_Wire):
    """One message of the conversation; `reasoning_content` (or `reasoning`) may come back from an earlier reply."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart | OtherPart] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class FunctionSpec(_Wire):
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(_Wire):
    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(_Wire):
    name: str


class NamedToolChoice(_Wire):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(_Wire):
    name: str = "response"
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(_Wire):
    """vLLM's own constraint field: at most one of these."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class StreamOptions(_Wire):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ChatRequest(_Wire):
    """POST /v1/chat/completions."""

    model: str | None = Field(None, description="a name of GET /v1/models; Qwen3-1.7B is always accepted")
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    n: int | None = Field(1, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=1, description="most tokens of thought and answer together")
    max_completion_tokens: int | None = Field(None, ge=1, description="OpenAI's newer name of max_tokens")
    min_tokens: int | None = Field(None, ge=0)
    temperature: Finite | None = Field(None, ge=0, le=2)
    top_p: Finite | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: Finite | None = Field(None, ge=0, le=1)
    presence_penalty: Finite | None = Field(None, ge=-2, le=2)
    frequency_penalty: Finite | None = Field(None, ge=-2, le=2)
    repetition_penalty: Finite | None = Field(None, gt=0, le=10)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, Finite] | None = None
    allowed_token_ids: list[int] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    enable_thinking: bool | None = Field(None, description="think before answering (default true)")
    return_reasoning: bool | None = Field(None, description="the article's markers inside content")
    include_reasoning: bool | None = Field(None, description="false: no reasoning anywhere in the response")
    thinking_budget: int | None = Field(None, ge=-1, description="most tokens to think; the answer still comes")
    thinking_token_budget: int | None = Field(None, ge=-1, description="vLLM's name of thinking_budget")
    reasoning_effort: str | None = Field(None, description="none, minimal, low, medium, high")
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    think: bool | str | None = None
    annotate_reasoning: bool | None = Field(None, description="reasoning as Markdown with links")
    session_id: str | None = Field(None, description="continue the conversation that the server keeps under this name")

    priority: int | None = Field(None, ge=-(2**31), le=2**31 - 1)
    user: str | None = None
    prompt_logprobs: int | None = None
    echo: bool | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
