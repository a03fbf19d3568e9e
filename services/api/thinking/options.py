"""How a request wants its thinking, out of the many names that clients use for it. Contradictions are errors, not guesses.

Think or not: `enable_thinking`, `chat_template_kwargs.enable_thinking`, `think` (Ollama), `thinking.type` (Anthropic,
DeepSeek), `reasoning.enabled` and `reasoning.effort` (OpenRouter), `reasoning_effort` (OpenAI; "none" is off).
Budget in tokens: `thinking_budget` (Alibaba), `thinking_token_budget` (vLLM), `thinking.budget_tokens`,
`reasoning.max_tokens`; an effort stands for a budget when none is named.
Show it or not: `include_reasoning`, `reasoning.exclude`. Show it inside `content`: `return_reasoning`.

`/no_think` at the end of the last system or user turn switches thinking off for one turn, as Qwen3 was trained to do; it
never contradicts, since it is text that any user may type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.api.errors import ContradictoryParameters, InvalidRequest
from services.contract.chat_format import Message

# Tokens per effort. Measured replies of reasoning models of this size end within a thousand or two; "high" sets no bound.
EFFORT_BUDGETS: dict[str, int | None] = {
    "minimal": 128,
    "low": 512,
    "medium": 2048,
    "high": None,
    "xhigh": None,
    "max": None,
}
_SOFT_SWITCH = re.compile(r"/(no_think|think)\s*$")


@dataclass(frozen=True, slots=True)
class ThinkingOptions:
    """What was asked for. `budget` in tokens; `in_content`: the article's markers inside `content`."""

    enabled: bool = True
    budget: int | None = None
    shown: bool = True
    in_content: bool = False
    annotated: bool = False


def read_thinking_options(body: Mapping[str, Any], messages: Sequence[Message]) -> ThinkingOptions:
    """Options of a request body (already type-checked where the schema names a field).

    Raises `ContradictoryParameters` when two names disagree, `InvalidRequest` for values that are none.
    """
    efforts = _agreed("reasoning effort", _efforts(body))
    enabled = _agreed(
        "enable_thinking", [*_switches(body), *([("reasoning_effort", efforts != "none")] if efforts else [])]
    )
    budget = _agreed("thinking_budget", _budgets(body))
    if budget is not None and budget > 0 and enabled is False:
        raise ContradictoryParameters(
            "thinking is switched off but a thinking budget is set: send one of the two", param="thinking_budget"
        )
    if budget is None and efforts is not None:
        budget = EFFORT_BUDGETS.get(efforts)
    shown = _agreed("include_reasoning", _shows(body))
    in_content = bool(body.get("return_reasoning") or False)
    if in_content and shown is False:
        raise ContradictoryParameters(
            "return_reasoning is true but include_reasoning is false: send one of the two", param="return_reasoning"
        )
    return ThinkingOptions(
        enabled=(enabled is not False) and not soft_switched_off(messages),
        budget=budget,
        shown=shown is not False,
        in_content=in_content,
        annotated=bool(body.get("annotate_reasoning") or False),
    )


def soft_switched_off(messages: Sequence[Message]) -> bool:
    """Whether the last turn that ends in a soft switch says /no_think."""
    for message in reversed(messages):
        if message.role in ("user", "system") and (switch := _SOFT_SWITCH.search(message.content)):
            return switch[1] == "no_think"
    return False


def _switches(body: Mapping[str, Any]) -> list[tuple[str, bool]]:
    found = [(name, body[name]) for name in ("enable_thinking", "think") if body.get(name) is not None]
    template = _object(body, "chat_template_kwargs")
    for name in ("enable_thinking", "thinking"):
        if template.get(name) is not None:
            found.append((f"chat_template_kwargs.{name}", template[name]))
    reasoning = _object(body, "reasoning")
    if reasoning.get("enabled") is not None:
        found.append(("reasoning.enabled", reasoning["enabled"]))
    for name, value in found:
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name} must be true or false", param=name)
    kind = _object(body, "thinking").get("type")
    if kind is not None:
        if kind not in ("enabled", "disabled", "adaptive", "auto"):
            raise InvalidRequest('thinking.type must be "enabled" or "disabled"', param="thinking.type")
        found.append(("thinking.type", kind != "disabled"))
    return found


def _efforts(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    named = [
        ("reasoning_effort", body.get("reasoning_effort")),
        ("reasoning.effort", _object(body, "reasoning").get("effort")),
    ]
    found = []
    for name, value in named:
        if value is None:
            continue
        if not isinstance(value, str) or (value != "none" and value not in EFFORT_BUDGETS):
            raise InvalidRequest(f"{name} must be one of none, {', '.join(EFFORT_BUDGETS)}", param=name)
        found.append((name, value))
    return found


def _budgets(body: Mapping[str, Any]) -> list[tuple[str, int]]:
    named = [(name, body.get(name)) for name in ("thinking_budget", "thinking_token_budget")]
    named += [
        ("thinking.budget_tokens", _object(body, "thinking").get("budget_tokens")),
        ("reasoning.max_tokens", _object(body, "reasoning").get("max_tokens")),
        ("chat_template_kwargs.thinking_budget", _object(body, "chat_template_kwargs").get("thinking_budget")),
    ]
    found = []
    for name, value in named:
        if value is None or value == -1:  # vLLM and Alibaba read -1 as no bound
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InvalidRequest(f"{name} must be a whole number of tokens, 0 or more", param=name)
        found.append((name, value))
    return found


def _shows(body: Mapping[str, Any]) -> list[tuple[str, bool]]:
    found = []
    if body.get("include_reasoning") is not None:
        found.append(("include_reasoning", body["include_reasoning"]))
    exclude = _object(body, "reasoning").get("exclude")
    if exclude is not None:
        if not isinstance(exclude, bool):
            raise InvalidRequest("reasoning.exclude must be true or false", param="reasoning.exclude")
        found.append(("reasoning.exclude", not exclude))
    return found


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name} must be an object", param=name)
    return value


def _agreed(meaning: str, named: Sequence[tuple[str, Any]]) -> Any:
    """The value that all names agree on; `None` when none is given."""
    if not named:
        return None
    first_name, first = named[0]
    for name, value in named[1:]:
        if value != first:
            raise ContradictoryParameters(
                f"{first_name} and {name} contradict each other about {meaning}: send one of the two", param=name
            )
    return first
