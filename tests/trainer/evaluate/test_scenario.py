"""Scenario files: what is refused with line and cause, and what the shipped ones hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.trainer.evaluate.polarity import says
from services.trainer.evaluate.scenario import (
    SCENARIOS,
    Scenario,
    ScenarioError,
    choose,
    dump_scenarios,
    parse_scenarios,
    read_scenarios,
    scenarios_sha256,
)
from tests.trainer.evaluate.conftest import scenario

POINT = {"point": "胸痛", "phrases": ["胸痛"]}


def changed(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: row | values


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (changed(id="A B"), "an id is of"),
        (changed(extra=1), "extra"),
        (changed(expected=[]), "expected"),
        (changed(expected=[{"point": "x", "phrases": []}]), "phrases"),
        (changed(expected=[{"point": "x", "phrases": ["  "]}]), "phrases"),
        (changed(expected=[POINT, POINT]), "same name"),
        (changed(sources=[]), "sources"),
        (changed(sources=[{"name": "x", "url": "http://www.nice.org.uk/x"}]), "url"),
        (changed(sources=[{"name": "x", "url": "https://nice"}]), "url"),
        (changed(turns=[]), "turns"),
        (changed(turns=[{"role": "assistant", "content": "好"}]), "end with the user"),
        (
            changed(turns=[{"role": "user", "content": "甲"}, {"role": "assistant", "content": "乙"}]),
            "end with the user",
        ),
        (changed(red_flags=[POINT]), "belong together"),
        (changed(urgent=POINT), "belong together"),
    ],
)
def test_a_broken_scenario_is_refused_with_its_line(
    change: Callable[[dict[str, Any]], dict[str, Any]], told: str
) -> None:
    good = scenario(1).model_dump_json()
    bad = json.dumps(change(scenario(2).model_dump(mode="json")), ensure_ascii=False)
    with pytest.raises(ScenarioError, match=rf"^file, line 2: .*{told}"):
        parse_scenarios(f"{good}\n{bad}\n", "file")


def test_doubles_and_emptiness_are_refused(tmp_path: Path) -> None:
    line = scenario(1).model_dump_json() + "\n"
    with pytest.raises(ScenarioError, match="the id 't01' twice"):
        parse_scenarios(line * 2, "file")
    with pytest.raises(ScenarioError, match=r"the question '问题1.' twice"):
        parse_scenarios(line + line.replace("t01", "t02"), "file")
    with pytest.raises(ScenarioError, match="no scenario"):
        parse_scenarios("\n", "file")
    with pytest.raises(ScenarioError, match="cannot read"):
        read_scenarios(tmp_path / "none.jsonl")


def test_the_form_of_a_file_does_not_change_its_hash() -> None:
    ours = (scenario(1), scenario(2))
    loose = "\n\n".join(json.dumps(s.model_dump(mode="json"), ensure_ascii=True, sort_keys=True) for s in ours)
    assert parse_scenarios(loose, "file") == ours == parse_scenarios(dump_scenarios(ours), "file")
    assert scenarios_sha256(parse_scenarios(loose, "file")) == scenarios_sha256(ours) != scenarios_sha256(ours[:1])


def test_a_line_separator_inside_a_text_is_no_end_of_line() -> None:
    odd = scenario(1, title="a\u2028b\u0085c")
    assert parse_scenarios(dump_scenarios([odd]), "file") == (odd,)


def test_scenarios_are_chosen_by_id() -> None:
    ours = (scenario(1), scenario(2))
    assert choose(ours, ["t02"]) == ours[1:]
    with pytest.raises(ScenarioError, match=r"'t09'.*t01, t02"):
        choose(ours, ["t09"])


@pytest.fixture(scope="module")
def shipped() -> tuple[Scenario, ...]:
    return read_scenarios(SCENARIOS)


def test_the_shipped_scenarios_cover_the_departments_and_emergencies(shipped: tuple[Scenario, ...]) -> None:
    assert len(shipped) >= 30
    departments = Counter(s.department for s in shipped)
    assert set(departments) == {"内科", "外科", "急诊", "慢病管理"}
    assert min(departments.values()) >= 5
    assert 10 <= sum(s.urgent is not None for s in shipped) <= len(shipped) - 10
    assert any("华法林" in s.question and "纳豆" in s.question for s in shipped)


def test_no_shipped_phrase_is_its_own_refusal(shipped: tuple[Scenario, ...]) -> None:
    """A phrase said plainly is said, and the question itself says nothing that none may say."""
    for s in shipped:
        for point in (*s.expected, *s.forbidden, *s.red_flags, *([s.urgent] if s.urgent else [])):
            for phrase in point.phrases:
                assert says(f"{phrase.replace('…', '')}。", [phrase]), (s.id, phrase)
        for point in s.forbidden:
            assert not says(s.turns[-1].content, point.phrases), (s.id, point.point)


def test_following_every_expected_point_says_nothing_forbidden(shipped: tuple[Scenario, ...]) -> None:
    for s in shipped:
        text = "".join(f"{phrase.replace('…', '')}。" for point in s.expected for phrase in point.phrases)
        said = [point.point for point in s.forbidden if says(text, point.phrases)]
        assert said == [], (s.id, said)
