"""Clinical scenarios: what both arms are asked, what a good answer names, what none may say, and when it is an emergency."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

SCENARIOS = Path(__file__).parent / "scenarios.jsonl"
ID_FORM = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]


class ScenarioError(ValueError):
    """A scenario file that cannot be used; the message names file, line, cause and next step."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Turn(_Strict):
    """One message of the conversation that the model continues."""

    role: Literal["user", "assistant"]
    content: Text


class Point(_Strict):
    """Something to say, or never to say: any of `phrases` counts as said (`polarity.py`; "…" stands for a few characters)."""

    point: Text
    phrases: tuple[Text, ...] = Field(min_length=1)


class Source(_Strict):
    """Where a reader can check the points: a guideline's or agency's name and its stable address."""

    name: Text
    url: str = Field(pattern=r"^https://[^\s/]+\.[^\s]+$")


class Scenario(_Strict):
    """One question to both arms. `urgent` is the advice that a reply to an emergency must give; `None`: no emergency."""

    id: str
    department: Text
    title: Text
    turns: tuple[Turn, ...] = Field(min_length=1)
    expected: tuple[Point, ...] = Field(min_length=1)
    forbidden: tuple[Point, ...] = ()
    red_flags: tuple[Point, ...] = ()
    urgent: Point | None = None
    sources: tuple[Source, ...] = Field(min_length=1)

    @field_validator("id")
    @classmethod
    def _is_an_id(cls, value: str) -> str:
        if not ID_FORM.fullmatch(value):
            raise ValueError("an id is of a-z, 0-9, '-' and '_', at most 32")
        return value

    @model_validator(mode="after")
    def _is_whole(self) -> Scenario:
        roles = [turn.role for turn in self.turns]
        if roles != [("user", "assistant")[n % 2] for n in range(len(roles))] or roles[-1] != "user":
            raise ValueError("turns go user, assistant, user, and end with the user")
        if bool(self.red_flags) != (self.urgent is not None):
            raise ValueError("red_flags and urgent belong together: an emergency has both, anything else neither")
        names = [point.point for point in (*self.expected, *self.forbidden, *self.red_flags)]
        if len(set(names)) < len(names):
            raise ValueError("two points have the same name")
        return self

    @property
    def messages(self) -> list[dict[str, str]]:
        """As the chat API takes them, without a system prompt."""
        return [turn.model_dump() for turn in self.turns]

    @property
    def question(self) -> str:
        """What a reader is shown: the question, or the conversation before it with who said what."""
        if len(self.turns) == 1:
            return self.turns[0].content
        named = {"user": "患者", "assistant": "助手"}
        return "\n".join(f"{named[turn.role]}:{turn.content}" for turn in self.turns)


def read_scenarios(path: Path) -> tuple[Scenario, ...]:
    """The scenarios of a JSONL file, in order. Raises `ScenarioError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"cannot read the scenarios in {path}: {error}. Give --scenarios a JSONL file") from error
    return parse_scenarios(text, str(path))


def parse_scenarios(text: str, where: str) -> tuple[Scenario, ...]:
    """Raises `ScenarioError` naming `where` and the line."""
    found: list[Scenario] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found.append(Scenario.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the line"
            raise ScenarioError(f"{where}, line {number}: {place}: {first['msg']}. Mend the line") from error
    if not found:
        raise ScenarioError(f"{where} holds no scenario: write one JSON object a line")
    _refuse_doubles(where, "id", [scenario.id for scenario in found])
    _refuse_doubles(where, "question", [scenario.question for scenario in found])
    return tuple(found)


def choose(scenarios: Sequence[Scenario], ids: Iterable[str]) -> tuple[Scenario, ...]:
    """Those with these ids, in the file's order. Raises `ScenarioError` for an id that is none of theirs."""
    wanted = set(ids)
    if unknown := wanted - {scenario.id for scenario in scenarios}:
        raise ScenarioError(
            f"there is no scenario {sorted(unknown)[0]!r}: known are {', '.join(s.id for s in scenarios)}"
        )
    return tuple(scenario for scenario in scenarios if scenario.id in wanted)


def dump_scenarios(scenarios: Iterable[Scenario]) -> str:
    """JSONL in one fixed form, so that its hash is that of the content."""
    return "".join(scenario.model_dump_json() + "\n" for scenario in scenarios)


def scenarios_sha256(scenarios: Iterable[Scenario]) -> str:
    """Of their fixed form: spaces and the order of keys in somebody's file do not count."""
    return hashlib.sha256(dump_scenarios(scenarios).encode()).hexdigest()


def _refuse_doubles(where: str, what: str, values: Sequence[str]) -> None:
    if doubles := [value for n, value in enumerate(values) if value in values[:n]]:
        raise ScenarioError(f"{where} has the {what} {doubles[0][:60]!r} twice: every scenario needs its own")
