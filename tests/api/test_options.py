"""How a request wants its thinking: every alias, every contradiction."""

from __future__ import annotations

from typing import Any

import pytest

from services.api.errors import ContradictoryParameters, InvalidRequest
from services.api.thinking.options import EFFORT_BUDGETS, ThinkingOptions, read_thinking_options, soft_switched_off
from services.contract.chat_format import Message

HELLO = [Message(role="user", content="你好")]


def options(**body: Any) -> ThinkingOptions:
    return read_thinking_options(body, HELLO)


def test_by_default_the_model_thinks_without_bound_and_shows_it_beside_the_answer() -> None:
    assert options() == ThinkingOptions(enabled=True, budget=None, shown=True, in_content=False, annotated=False)


def test_fields_that_are_null_say_nothing() -> None:
    names = (
        "enable_thinking", "return_reasoning", "include_reasoning", "thinking_budget", "thinking_token_budget",
        "reasoning_effort", "chat_template_kwargs", "reasoning", "thinking", "think", "annotate_reasoning",
    )  # fmt: skip
    assert options(**dict.fromkeys(names)) == options()


@pytest.mark.parametrize(
    ("off", "on"),
    [
        ({"enable_thinking": False}, {"enable_thinking": True}),
        ({"think": False}, {"think": True}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"chat_template_kwargs": {"enable_thinking": True}}),
        ({"chat_template_kwargs": {"thinking": False}}, {"chat_template_kwargs": {"thinking": True}}),
        ({"thinking": {"type": "disabled"}}, {"thinking": {"type": "enabled"}}),
        ({"thinking": {"type": "disabled"}}, {"thinking": {"type": "adaptive"}}),
        ({"thinking": {"type": "disabled"}}, {"thinking": {"type": "auto"}}),
        ({"reasoning": {"enabled": False}}, {"reasoning": {"enabled": True}}),
        ({"reasoning": {"effort": "none"}}, {"reasoning": {"effort": "high"}}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "low"}),
    ],
)
def test_every_alias_switches_thinking(off, on) -> None:
    assert options(**off).enabled is False
    assert options(**on).enabled is True
    with pytest.raises(ContradictoryParameters):  # and disagreeing with `enable_thinking` is an error, both ways
        options(**({"enable_thinking": True, **off} if "enable_thinking" not in off else {"think": True, **off}))
    with pytest.raises(ContradictoryParameters):
        options(**({"enable_thinking": False, **on} if "enable_thinking" not in on else {"think": False, **on}))


@pytest.mark.parametrize(
    "body",
    [
        {"thinking_budget": 64},
        {"thinking_token_budget": 64},
        {"thinking": {"type": "enabled", "budget_tokens": 64}},
        {"reasoning": {"max_tokens": 64}},
        {"chat_template_kwargs": {"thinking_budget": 64}},
    ],
)
def test_every_alias_sets_the_budget(body) -> None:
    assert options(**body).budget == 64
    key = "thinking_token_budget" if "thinking_budget" in body else "thinking_budget"
    assert options(**body, **{key: 64}).budget == 64
    with pytest.raises(ContradictoryParameters):
        options(**body, **{key: 65})


@pytest.mark.parametrize("effort", EFFORT_BUDGETS)
def test_an_effort_stands_for_a_budget(effort) -> None:
    assert options(reasoning_effort=effort).budget == EFFORT_BUDGETS[effort]
    assert options(reasoning={"effort": effort}).budget == EFFORT_BUDGETS[effort]


def test_a_named_budget_wins_over_an_effort() -> None:
    assert options(reasoning_effort="low", thinking_budget=7).budget == 7


@pytest.mark.parametrize("name", ["thinking_budget", "thinking_token_budget"])
def test_minus_one_is_no_bound(name) -> None:
    assert options(**{name: -1}).budget is None


def test_a_budget_of_zero_is_a_budget() -> None:
    assert options(thinking_budget=0).budget == 0


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"include_reasoning": False}, False),
        ({"include_reasoning": True}, True),
        ({"reasoning": {"exclude": True}}, False),
        ({"reasoning": {"exclude": False}}, True),
        ({"include_reasoning": False, "reasoning": {"exclude": True}}, False),
    ],
)
def test_reasoning_is_shown_or_not(body, shown) -> None:
    assert options(**body).shown is shown


def test_markers_and_annotations_are_asked_for() -> None:
    assert options(return_reasoning=True).in_content is True
    assert options(annotate_reasoning=True).annotated is True
    assert options(return_reasoning=False, include_reasoning=False).in_content is False


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"enable_thinking": True, "think": False}, "think"),
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"reasoning_effort": "none", "enable_thinking": True}, "reasoning_effort"),
        ({"enable_thinking": False, "thinking_budget": 100}, "thinking_budget"),
        ({"return_reasoning": True, "include_reasoning": False}, "return_reasoning"),
        ({"return_reasoning": True, "reasoning": {"exclude": True}}, "return_reasoning"),
        ({"include_reasoning": True, "reasoning": {"exclude": True}}, "reasoning.exclude"),
    ],
)
def test_contradictions_are_refused_and_name_a_field(body, param) -> None:
    with pytest.raises(ContradictoryParameters) as error:
        options(**body)
    assert error.value.param == param


def test_thinking_off_with_a_budget_of_zero_is_no_contradiction() -> None:
    assert options(enable_thinking=False, thinking_budget=0).enabled is False


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"think": "yes"}, "think"),
        ({"chat_template_kwargs": {"enable_thinking": 1}}, "chat_template_kwargs.enable_thinking"),
        ({"reasoning": {"enabled": "true"}}, "reasoning.enabled"),
        ({"reasoning": {"exclude": 0}}, "reasoning.exclude"),
        ({"reasoning": {"effort": "hard"}}, "reasoning.effort"),
        ({"reasoning": {"effort": ["high"]}}, "reasoning.effort"),
        ({"reasoning_effort": "HIGH"}, "reasoning_effort"),
        ({"reasoning": {"max_tokens": -2}}, "reasoning.max_tokens"),
        ({"reasoning": {"max_tokens": True}}, "reasoning.max_tokens"),
        ({"thinking": {"budget_tokens": 1.5}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "off"}}, "thinking.type"),
        ({"thinking": {"type": {"a": 1}}}, "thinking.type"),
        ({"thinking": "on"}, "thinking"),
        ({"reasoning": []}, "reasoning"),
    ],
)
def test_values_that_are_none_are_refused_and_name_their_field(body, param) -> None:
    with pytest.raises(InvalidRequest) as error:
        options(**body)
    assert error.value.param == param
    assert error.value.code == "invalid_request"


@pytest.mark.parametrize(
    ("turns", "off"),
    [
        (["血压高怎么办 /no_think"], True),
        (["血压高怎么办 /no_think\n"], True),
        (["/no_think 血压高怎么办"], False),
        (["第一问 /no_think", "第二问"], True),
        (["第一问 /no_think", "第二问 /think"], False),
        (["第一问 /think", "第二问 /no_think"], True),
        (["关于/no_thinking"], False),
    ],
)
def test_the_last_soft_switch_decides(turns, off) -> None:
    messages = [Message(role="user", content=text) for text in turns]
    assert soft_switched_off(messages) is off
    assert read_thinking_options({}, messages).enabled is not off


def test_the_soft_switch_may_stand_in_the_system_turn_but_not_in_the_assistants() -> None:
    assert soft_switched_off([Message(role="system", content="简短 /no_think"), *HELLO])
    assert not soft_switched_off([*HELLO, Message(role="assistant", content="好 /no_think"), *HELLO])


def test_the_soft_switch_never_contradicts() -> None:
    messages = [Message(role="user", content="问 /no_think")]
    assert read_thinking_options({"enable_thinking": True, "thinking_budget": 9}, messages).enabled is False
