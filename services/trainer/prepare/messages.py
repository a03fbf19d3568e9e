"""A list of chat messages, as OpenAI's API and most data sets write them, to turns of `contract.chat_format`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from services.contract.chat_format import (
    ANSWER_BEGIN,
    END_THINK,
    REASONING_BEGIN,
    REASONING_END,
    THINK,
    Message,
    ToolCall,
)
from services.trainer.prepare.texts import normalise

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_INLINE = re.compile(rf"\s*{THINK}(.*?){END_THINK}(.*)", re.DOTALL)
# The article's own framing, which Qwen3 does not know: read, so that data made for it can be used, and written as <think>.
_ARTICLE = re.compile(
    rf"\s*{re.escape(REASONING_BEGIN)}(.*?){re.escape(REASONING_END)}\s*{re.escape(ANSWER_BEGIN)}(.*)", re.DOTALL
)


class FormError(ValueError):
    """A record that cannot be read; `problems` are pairs of kind and message."""

    def __init__(self, kind: str, message: str, problems: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems) or [(kind, message)]


def read_messages(value: Any) -> tuple[tuple[Message, ...], str]:
    """The turns, and the form they came in. Raises `FormError` with everything that is wrong with them."""
    if not isinstance(value, list) or not value:
        raise FormError("form", "messages is not a list, or empty")
    messages: list[Message] = []
    forms: set[str] = set()
    problems: list[tuple[str, str]] = []
    for number, raw in enumerate(value, 1):
        try:
            message, form = _read_message(raw)
        except FormError as error:
            problems += [(kind, f"message {number}: {text}") for kind, text in error.problems]
            continue
        messages.append(message)
        forms.add(form)
    problems += [] if problems else [("turns", text) for text in _misplaced(messages)]
    if problems:
        raise FormError(*problems[0], problems)
    form = "inline <think>" if "inline" in forms else "reasoning_content" if "field" in forms else "no reasoning"
    return tuple(messages), f"messages, {form}"


def _read_message(raw: Any) -> tuple[Message, str]:
    if not isinstance(raw, dict):
        raise FormError("form", f"not an object but {type(raw).__name__}")
    role = _ROLES.get(str(raw.get("role")))
    if role is None:
        raise FormError("form", f"role {raw.get('role')!r} is none of {', '.join(_ROLES)}")
    content = _read_content(raw.get("content"))
    if role != "assistant":
        if not content:
            raise FormError("empty", f"the {role}'s content is missing or blank")
        return Message.model_validate({"role": role, "content": content}), "plain"
    reasoning, answer, form = _split_reply(raw, content)
    calls = _read_calls(raw.get("tool_calls"))
    if not answer and not calls:
        raise FormError("empty", "the assistant's answer is missing or blank")
    return Message(role="assistant", content=answer, reasoning_content=reasoning or None, tool_calls=calls), form


def _read_content(value: Any) -> str:
    """Text, or OpenAI's list of text parts."""
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in value):
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise FormError("form", f"content is neither text nor text parts but {type(value).__name__}")
    return normalise(value)


def _split_reply(raw: dict[str, Any], content: str) -> tuple[str, str, str]:
    """Reasoning, answer, and how they were told apart."""
    field = raw.get("reasoning_content", raw.get("reasoning"))
    if field is not None and not isinstance(field, str):
        raise FormError("form", f"reasoning_content is not text but {type(field).__name__}")
    inline = _INLINE.fullmatch(content) or _ARTICLE.fullmatch(content)
    if inline and field:
        raise FormError("thinking", "has reasoning_content and <think> in the content too: leave one")
    if inline:
        return normalise(inline[1]), normalise(inline[2]), "inline"
    return normalise(field or ""), content, "field" if field else "plain"


def _read_calls(value: Any) -> tuple[ToolCall, ...]:
    if not value:
        return ()
    try:
        return tuple(_read_call(call.get("function", call)) for call in value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormError("form", "tool_calls are not [{function: {name, arguments}}] with arguments in JSON") from error


def _read_call(function: dict[str, Any]) -> ToolCall:
    arguments = function["arguments"]
    if isinstance(arguments, str):
        json.loads(arguments)
    else:
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(name=function["name"], arguments=arguments)


def _misplaced(messages: Sequence[Message]) -> list[str]:
    """What is wrong with the order of the turns; numbers count from 1."""
    wrong: list[str] = []
    before = ""
    for number, message in enumerate(messages, 1):
        if message.role == "system" and number > 1:
            wrong.append(f"message {number}: a system turn must be the first")
            continue
        if message.role == "assistant" and before not in ("user", "tool"):
            wrong.append(f"message {number}: the assistant must answer a user or a tool, not {before or 'nothing'}")
        if message.role == "tool" and before not in ("assistant", "tool"):
            wrong.append(f"message {number}: a tool's result must follow the assistant's call")
        if message.role == "tool" and before == "assistant" and not messages[number - 2].tool_calls:
            wrong.append(f"message {number}: a tool's result, but the assistant called none")
        before = message.role
    if before != "assistant":
        wrong.append("the last message is not the assistant's, so there is nothing to learn from it")
    return wrong
