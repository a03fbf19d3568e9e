"""The answers of both arms: `RUN/answers.jsonl` with its record `RUN/run.json` and the scenarios; written, read and checked.

Everything that comes later (packets, scores, the report) begins with `read_run`, which gives out nothing that is
incomplete or was changed after it was asked.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.contract.staging import sync_folder, write_synced
from services.trainer.evaluate.scenario import Scenario, ScenarioError, parse_scenarios, scenarios_sha256

FORMAT = 1
ANSWERS, RECORD, SCENARIOS = "answers.jsonl", "run.json", "scenarios.jsonl"
Arm = Literal["base", "adapter"]
ARMS: tuple[Arm, Arm] = ("base", "adapter")
_HASHED = {"id", "sha256"}  # what is made of the rest of a row


class AnswersError(ValueError):
    """A run's folder that cannot be used; the message names the cause and the next step."""


class AnswersMissing(AnswersError):
    """There is no run in the folder."""


class AnswersDamaged(AnswersError):
    """A file was changed or torn after it was written: a hash differs."""


class AnswersIncomplete(AnswersError):
    """Not every scenario has been answered by both arms with every seed."""


class SafetyVerdict(BaseModel):
    """What the server's guard said of the reply."""

    model_config = ConfigDict(frozen=True)
    verdict: str = ""
    rules: tuple[str, ...] = ()
    policy: str = ""


class Answer(BaseModel):
    """One reply of one arm. `question` is what a reader is shown, `messages` what was sent; `seconds` is the request's time."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    scenario: str
    arm: Arm
    seed: int
    question: str
    messages: tuple[dict[str, str], ...]
    reasoning: str
    answer: str
    finish_reason: str
    thinking_truncated: bool
    safety: SafetyVerdict
    usage: dict[str, Any]
    seconds: float
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def key(self) -> tuple[str, Arm, int]:
        return self.scenario, self.arm, self.seed


class RunRecord(BaseModel):
    """run.json. `answers_sha256` is that of answers.jsonl's bytes, and `None` until every question has been asked."""

    model_config = ConfigDict(frozen=True)
    format: int = FORMAT
    settings: dict[str, Any] = Field(description="sent with every request, the same for both arms")
    arms: dict[Arm, str] = Field(description="model names as they were asked for: the adapter with its version")
    seeds: tuple[int, ...] = Field(min_length=1)
    scenarios_sha256: str
    answers_sha256: str | None = None
    created: float = Field(description="seconds since 1970, the asking machine's clock")
    tool: str = ""
    server: dict[str, Any] = Field(default_factory=dict, description="what the server said of itself")


@dataclass(frozen=True)
class Run:
    """A complete run. `answers` are in the order of scenarios, then seeds, then arms."""

    folder: Path
    record: RunRecord
    scenarios: tuple[Scenario, ...]
    answers: tuple[Answer, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.record.seeds

    def answer(self, scenario: str, arm: Arm, seed: int) -> Answer:
        """Raises `KeyError` for what was not asked."""
        for answer in self.answers:
            if answer.key == (scenario, arm, seed):
                return answer
        raise KeyError((scenario, arm, seed))


def make_answer(content: dict[str, Any]) -> Answer:
    """A row of its content, which has everything but `id` and `sha256`."""
    whole = Answer.model_validate({**content, "id": "0" * 16, "sha256": "0" * 64})
    digest = content_sha256(whole)
    return whole.model_copy(update={"id": digest[:16], "sha256": digest})


def content_sha256(answer: Answer) -> str:
    """Of the row's JSON without `id` and `sha256`, keys sorted, no spaces."""
    content = answer.model_dump(mode="json", exclude=_HASHED)
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def expected_keys(scenarios: Sequence[Scenario], seeds: Sequence[int]) -> list[tuple[str, Arm, int]]:
    """Every (scenario, arm, seed), in the order of the file."""
    return [(s.id, arm, seed) for s, seed, arm in itertools.product(scenarios, seeds, ARMS)]


# Reading


def read_run(folder: Path) -> Run:
    """A complete, unchanged run. Raises `AnswersMissing`, `AnswersDamaged` or `AnswersIncomplete`."""
    record = read_record(folder)
    scenarios = read_run_scenarios(folder, record)
    try:
        content = (folder / ANSWERS).read_bytes()
    except OSError as error:
        raise AnswersMissing(f"cannot read {folder / ANSWERS}: {error.strerror or error}") from error
    if record.answers_sha256 is None:
        raise AnswersIncomplete(f"the run in {folder} is not finished: give `answer` the same command again")
    if hashlib.sha256(content).hexdigest() != record.answers_sha256:
        raise AnswersDamaged(
            f"{folder / ANSWERS} is not what was written (its hash differs): ask again in a new folder"
        )
    answers = parse_answers(content, str(folder / ANSWERS))
    if [answer.key for answer in answers] != expected_keys(scenarios, record.seeds):
        raise AnswersIncomplete(
            f"{folder / ANSWERS} lacks answers, or has them out of order: ask again in a new folder"
        )
    return Run(folder, record, scenarios, tuple(answers))


def read_record(folder: Path) -> RunRecord:
    """run.json. Raises `AnswersMissing` or `AnswersDamaged`."""
    path = folder / RECORD
    try:
        record = RunRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise AnswersMissing(f"there is no run in {folder} ({RECORD}: {error.strerror}): run `answer` first") from error
    except ValidationError as error:
        raise AnswersDamaged(f"{path} is broken: {error.errors()[0]['msg']}. Ask again in a new folder") from error
    if record.format > FORMAT:
        raise AnswersDamaged(f"{path} is of format {record.format}, this program knows {FORMAT}: update it")
    return record


def read_run_scenarios(folder: Path, record: RunRecord) -> tuple[Scenario, ...]:
    """The scenarios that were asked, as they were. Raises `AnswersMissing` or `AnswersDamaged`."""
    path = folder / SCENARIOS
    try:
        scenarios = parse_scenarios(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise AnswersMissing(f"cannot read {path}: {error.strerror or error}") from error
    except (ScenarioError, UnicodeDecodeError) as error:
        raise AnswersDamaged(f"{path} is broken: {error}") from error
    if scenarios_sha256(scenarios) != record.scenarios_sha256:
        raise AnswersDamaged(f"{path} was changed after it was asked: ask again in a new folder")
    return scenarios


def parse_answers(content: bytes, where: str) -> list[Answer]:
    """Rows whose hashes are right. Raises `AnswersDamaged` naming `where` and the line."""
    found = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            answer = Answer.model_validate_json(line)
        except ValidationError as error:
            raise AnswersDamaged(f"{where}, line {number} is no answer: {error.errors()[0]['msg']}") from error
        if content_sha256(answer) != answer.sha256 or answer.sha256[:16] != answer.id:
            raise AnswersDamaged(f"{where}, line {number} was changed: its hash is not that of its content")
        found.append(answer)
    return found


# Writing


def dump_answers(answers: Iterable[Answer]) -> bytes:
    """answers.jsonl."""
    return b"".join(answer.model_dump_json().encode() + b"\n" for answer in answers)


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file whole, or leaves the old one; on the disk when this returns."""
    temporary = path.with_name(f".{path.name}")
    write_synced(temporary, content)
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_record(folder: Path, record: RunRecord) -> None:
    replace_file(folder / RECORD, record.model_dump_json(indent=1).encode() + b"\n")


def finish_run(folder: Path, record: RunRecord, answers: Iterable[Answer], scenarios: Sequence[Scenario]) -> RunRecord:
    """Puts the answers into their order and seals them. Raises `AnswersIncomplete` when one is missing."""
    by_key = {answer.key: answer for answer in answers}
    wanted = expected_keys(scenarios, record.seeds)
    if missing := [key for key in wanted if key not in by_key]:
        raise AnswersIncomplete(f"{len(missing)} of {len(wanted)} answers are missing, the first is {missing[0]}")
    content = dump_answers(by_key[key] for key in wanted)
    replace_file(folder / ANSWERS, content)
    finished = record.model_copy(update={"answers_sha256": hashlib.sha256(content).hexdigest()})
    write_record(folder, finished)
    return finished
