"""Reads and checks the hand-written dialogues that the demo model is made of. Knows no tokenizer and no model."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FOLDER = Path(__file__).resolve().parent / "dialogues"
OUT_OF_SCOPE, UNKNOWN_ANSWERS = "out_of_scope.jsonl", "unknown_answers.json"

# Text that would look like framing, Markdown, or an adapter's marker in a reply.
FORBIDDEN = ("<|", "|>", "<think", "</think", "<tool_", "</tool_", "**", "\ufffd", "\r")

Lang = Literal["zh", "en"]
Text = Annotated[str, Field(min_length=1)]


class DialogueError(ValueError):
    """Dialogue files that must not be trained on; the message lists every problem as `file:line: what is wrong`."""


class Record(BaseModel):
    """One line of a dialogue file: only known fields, every text in NFC and without framing."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=False)

    @model_validator(mode="after")
    def _texts_are_clean(self) -> Self:
        for text in _texts(self.model_dump()):
            found = [mark for mark in FORBIDDEN if mark in text]
            if found:
                raise ValueError(f"{found[0]!r} in {text[:40]!r}")
            if text != unicodedata.normalize("NFC", text) or text != text.strip():
                raise ValueError(f"not in NFC, or spaces around it: {text[:40]!r}")
        return self


class Dialogue(Record):
    """One question in eight phrasings, with the one reply to all of them."""

    id: Text
    topic: Text
    lang: Lang
    question: Text
    paraphrases: Annotated[tuple[Text, ...], Field(min_length=6, max_length=6)]
    held_out: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1)]
    think: Text
    answer: Text
    source: Text

    @property
    def training_questions(self) -> tuple[str, ...]:
        return (self.question, *self.paraphrases)


class OutOfScope(Record):
    """A question that the demo model must not try to answer."""

    id: Text
    lang: Lang
    kind: Text
    split: Literal["train", "held_out"]
    question: Text


AnyRecord = TypeVar("AnyRecord", Dialogue, OutOfScope)


class UnknownAnswer(Record):
    think: Text
    answer: Text


class UnknownAnswers(BaseModel):
    """The replies to questions out of scope; any of them fits any such question of the language."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    zh: Annotated[tuple[UnknownAnswer, ...], Field(min_length=1)]
    en: Annotated[tuple[UnknownAnswer, ...], Field(min_length=1)]

    def of(self, lang: Lang) -> tuple[UnknownAnswer, ...]:
        return self.zh if lang == "zh" else self.en


class Corpus(BaseModel):
    """Everything hand-written: dialogues, questions to refuse, and how to refuse them."""

    model_config = ConfigDict(frozen=True)
    dialogues: tuple[Dialogue, ...]
    out_of_scope: tuple[OutOfScope, ...]
    unknown: UnknownAnswers

    def texts(self) -> Iterator[str]:
        """Every text that training may see; nothing that is held out."""
        for dialogue in self.dialogues:
            yield from (*dialogue.training_questions, dialogue.think, dialogue.answer)
        for question in self.out_of_scope:
            if question.split == "train":
                yield question.question
        for answer in (*self.unknown.zh, *self.unknown.en):
            yield from (answer.think, answer.answer)


def read_corpus(folder: Path = FOLDER) -> Corpus:
    """Reads `folder`: every `*.jsonl` is dialogues, but for `out_of_scope.jsonl`; `unknown_answers.json` beside them.

    Raises `DialogueError` for a missing file, a broken line, an id or a question that occurs twice anywhere.
    """
    problems: list[str] = []
    taken: dict[str, str] = {}
    dialogues: list[Dialogue] = []
    for path in sorted(folder.glob("*.jsonl")):
        if path.name != OUT_OF_SCOPE:
            dialogues += _read_lines(path, Dialogue.model_validate, problems, taken)
    out_of_scope = _read_lines(folder / OUT_OF_SCOPE, OutOfScope.model_validate, problems, taken)
    unknown = _read_unknown(folder / UNKNOWN_ANSWERS, problems)
    if not dialogues:
        problems.append(f"{folder}: no dialogues")
    if problems or unknown is None:
        raise DialogueError("\n".join(problems))
    return Corpus(dialogues=tuple(dialogues), out_of_scope=tuple(out_of_scope), unknown=unknown)


def comparable(question: str) -> str:
    """A question without case, spaces and punctuation: two that are equal so are the same question."""
    return "".join(c for c in question.casefold() if c.isalnum())


def _read_lines(
    path: Path, parse: Callable[[object], AnyRecord], problems: list[str], taken: dict[str, str]
) -> list[AnyRecord]:
    records: list[AnyRecord] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name}: {error}")
        return records
    for number, line in enumerate(lines, 1):
        where = f"{path.name}:{number}"
        try:
            record = parse(json.loads(line))
        except ValidationError as error:
            problems += [f"{where}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            continue
        except ValueError as error:
            problems.append(f"{where}: not JSON: {error}")
            continue
        problems += _claim(record, where, taken)
        records.append(record)
    return records


def _claim(record: Dialogue | OutOfScope, where: str, taken: dict[str, str]) -> Iterator[str]:
    """Takes the record's id and questions; yields a problem for each that somebody has taken before."""
    questions = [record.question]
    if isinstance(record, Dialogue):
        questions += [*record.paraphrases, *record.held_out]
    for key, name in [(f"id {record.id}", record.id), *((comparable(q), q) for q in questions)]:
        if key in taken:
            yield f"{where}: {name!r} is already at {taken[key]}"
        taken.setdefault(key, where)


def _read_unknown(path: Path, problems: list[str]) -> UnknownAnswers | None:
    try:
        return UnknownAnswers.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: {error}")
        return None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
