"""Constrained answers: JSON, schemas, patterns and choices. The thought before them stays free."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.vllm

Completion = dict[str, Any]
Ask = Callable[..., Completion]
Stream = Callable[..., list[dict[str, Any]]]

SCHEMA = {
    "type": "object",
    "properties": {
        "urgent": {"type": "boolean"},
        "department": {"enum": ["心内科", "神经内科", "急诊科"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["urgent", "department", "days"],
    "additionalProperties": False,
}
RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "triage", "schema": SCHEMA, "strict": True}}


def message(completion: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = completion["choices"][0]["message"]
    return found


def assert_fits_the_schema(text: str) -> None:
    value = json.loads(text)
    assert set(value) == {"urgent", "department", "days"}
    assert isinstance(value["urgent"], bool)
    assert value["department"] in ("心内科", "神经内科", "急诊科")
    assert 0 <= value["days"] <= 99


@pytest.mark.parametrize("thinks", [True, False])
def test_an_answer_fits_its_schema(ask: Ask, stream: Stream, thinks: bool) -> None:
    completion = ask(response_format=RESPONSE_FORMAT, enable_thinking=thinks)
    assert_fits_the_schema(message(completion)["content"])
    assert completion["choices"][0]["finish_reason"] == "stop"
    chunks = stream(response_format=RESPONSE_FORMAT, enable_thinking=thinks)
    text = "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])
    assert text == message(completion)["content"]


def test_the_thought_before_a_constrained_answer_is_the_free_one(ask: Ask, plain: Completion) -> None:
    bound = ask(response_format=RESPONSE_FORMAT)
    assert message(bound)["reasoning"] == message(plain)["reasoning"]
    assert len(message(bound)["reasoning"]) > 10
    assert bound["usage"]["completion_tokens_details"]["reasoning_tokens"] > 10


def test_a_budget_and_a_schema_work_together(ask: Ask) -> None:
    completion = ask(response_format=RESPONSE_FORMAT, thinking_budget=5)
    assert_fits_the_schema(message(completion)["content"])
    assert completion["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 5
    assert completion["thinking_truncated"] is True


@pytest.mark.parametrize("thinks", [True, False])
def test_json_mode_gives_an_object(ask: Ask, token: Callable[[str], int], thinks: bool) -> None:
    """Braces are favoured, so that a model that never saw JSON comes to an end."""
    favour = {"logit_bias": {str(token(brace)): 100 for brace in "{}"}, "thinking_budget": 3 if thinks else None}
    free = message(ask(**favour, enable_thinking=thinks, max_tokens=40))["content"]
    with pytest.raises(ValueError, match=r"Expecting|Extra data"):
        json.loads(free)
    completion = ask(**favour, enable_thinking=thinks, max_tokens=40, response_format={"type": "json_object"})
    assert isinstance(json.loads(message(completion)["content"]), dict)


@pytest.mark.parametrize("thinks", [True, False])
@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"regex": "[0-9]{3}-[0-9]{4}"}, "[0-9]{3}-[0-9]{4}"),
        ({"choice": ["需要急诊", "不需要急诊"]}, "需要急诊|不需要急诊"),
        ({"grammar": 'root ::= "yes" | "no"'}, "yes|no"),
        ({"json": {"enum": [1, 2]}}, "[12]"),
    ],
    ids=["regex", "choice", "grammar", "json"],
)
def test_vllms_own_constraints_bind_the_answer(ask: Ask, constraint: Any, pattern: str, thinks: bool) -> None:
    completion = ask(structured_outputs=constraint, enable_thinking=thinks)
    assert re.fullmatch(pattern, message(completion)["content"])
    assert completion["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("thinks", [True, False])
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"regex": "([0-9"}},
        {"structured_outputs": {"grammar": "root ::= ("}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"structured_outputs": {"choice": []}},
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
    ],
    ids=["regex", "grammar", "schema", "no-schema", "no-choice", "two-kinds", "two-fields"],
)
def test_a_constraint_that_makes_no_sense_is_refused_before_anything_is_sent(
    post: Callable[..., httpx.Response], fields: dict[str, Any], streamed: bool, thinks: bool
) -> None:
    response = post(**fields, stream=streamed, enable_thinking=thinks)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert "Traceback" not in error["message"]
