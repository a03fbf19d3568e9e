"""A prepared data set on the disk: what `prepare` writes and `plan` and `train` read. Knows no tokenizer and no model.

    card.json    what the data are, where they come from, what was left out (card.md: the same for people)
    train.jsonl  val.jsonl  [test.jsonl]    one `PreparedRow` a line

The card names the hash of every file, so that what is trained on is what was checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.contract.chat_format import Message
from services.trainer.encode import Example

CARD, CARD_TEXT = "card.json", "card.md"
SPLITS = ("train", "val", "test")
SCHEMA_VERSION = 1


class DatasetError(ValueError):
    """A data set that cannot be used; the message names the cause and the next step in one line."""


class PreparedRow(BaseModel):
    """One assistant turn to learn, with what was said before it.

    `tokens` and `supervised` count the encoded row with the card's system prompt and tokenizer. Rows of one `group` ask
    the same, or nearly the same, and are all in one split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str = Field(description="source file, line, and `#turn` when the line holds several assistant turns")
    group: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    enable_thinking: bool = Field(description="false: the reply has no reasoning; its empty thought is not supervised")
    tokens: int = Field(ge=1)
    supervised: int = Field(ge=1)

    def example(self, system_prompt: str | None) -> Example:
        """What `encode` takes. `system_prompt` goes before rows that have none of their own."""
        messages = self.messages
        if system_prompt and messages[0].role != "system":
            messages = (Message(role="system", content=system_prompt), *messages)
        return Example(messages, self.tools, self.enable_thinking)


class FileCard(BaseModel):
    """One split's file, or one source file (whose tokens are not counted)."""

    model_config = ConfigDict(frozen=True)
    sha256: str
    rows: int = Field(description="lines that hold something")
    tokens: int | None = None
    supervised: int | None = None


class LengthCard(BaseModel):
    """Distribution of a length in tokens; `histogram` maps the upper edge of a bin (inclusive) to its number of rows."""

    model_config = ConfigDict(frozen=True)
    least: int
    mean: float
    p50: int
    p90: int
    p99: int
    most: int
    histogram: dict[int, int] = {}


class Card(BaseModel):
    """Everything that is known of a prepared data set."""

    model_config = ConfigDict(frozen=True)
    schema_version: int = SCHEMA_VERSION
    created: str = Field(description="UTC, ISO 8601")
    data_sha256: str = Field(description="over the split files' hashes; names the data in run records and manifests")
    files: dict[str, FileCard] = Field(description="by split")
    sources: dict[str, FileCard] = Field(description="by file name, as they were read")
    chat_format_sha256: str = Field(description="the tokenizer and turn format that lengths were counted with")
    system_prompt: str
    max_length: int
    seed: int
    options: dict[str, Any] = Field(description="other options of `prepare`")
    formats: dict[str, int] = Field(description="records by the form they came in")
    extra_columns: dict[str, int] = Field(description="columns that were not used, and in how many records")
    dialogues: int
    groups: int
    near_duplicate_groups: int = Field(description="groups of several dialogues")
    largest_group: int = Field(description="dialogues in the largest group")
    rows_without_thinking: int
    rows_with_tools: int
    rows_with_history: int
    normalised: int = Field(description="texts changed to NFC, Unix line ends, and no blanks around them")
    dropped: dict[str, int] = Field(description="problems for which something was left out, by kind")
    allowed: dict[str, int] = Field(description="problems that were found and let pass by --allow, by kind")
    lengths: dict[str, LengthCard] = Field(description="row, prompt, thinking, answer; in tokens, over all splits")


@dataclass(frozen=True)
class Prepared:
    """A data set as read back: rows by split, in file order."""

    folder: Path
    card: Card
    rows: dict[str, list[PreparedRow]]

    def examples(self, split: str, system_prompt: str | None = None) -> list[Example]:
        """Examples of a split; `system_prompt` none: the card's. Use `encode` on each."""
        prompt = self.card.system_prompt if system_prompt is None else system_prompt
        return [row.example(prompt) for row in self.rows.get(split, [])]


def read_card(folder: Path) -> Card:
    """Raises `DatasetError` when `folder` holds no readable card."""
    try:
        card = Card.model_validate_json((folder / CARD).read_bytes())
    except OSError as error:
        why = error.strerror or error
        raise DatasetError(
            f"cannot read {folder / CARD} ({why}): make the data set with `prepare` first, or name it with --set data=DIR"
        ) from error
    except ValidationError as error:
        raise DatasetError(f"{folder / CARD} is broken ({_first(error)}): run `prepare` again") from error
    if card.schema_version != SCHEMA_VERSION:
        raise DatasetError(f"{folder} is of schema {card.schema_version}, not {SCHEMA_VERSION}: run `prepare` again")
    return card


def read_prepared(folder: Path) -> Prepared:
    """Reads every split and checks it against the card. Raises `DatasetError`."""
    card = read_card(folder)
    rows = {split: _read_split(folder, split, file) for split, file in card.files.items()}
    if card.data_sha256 != data_sha256(card.files):
        raise DatasetError(f"{folder / CARD} does not name its own data hash: run `prepare` again")
    return Prepared(folder, card, rows)


def data_sha256(files: Mapping[str, FileCard]) -> str:
    """The hash that names a data set: over its splits' names and hashes, in order."""
    lines = "".join(f"{split} {files[split].sha256}\n" for split in SPLITS if split in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def write_rows(rows: Sequence[PreparedRow]) -> bytes:
    """A split's file: the same rows give the same bytes."""
    return "".join(f"{_json(row)}\n" for row in rows).encode()


def file_card(rows: Sequence[PreparedRow], content: bytes) -> FileCard:
    """`content` is what `write_rows` made of `rows`."""
    return FileCard(
        sha256=hashlib.sha256(content).hexdigest(),
        rows=len(rows),
        tokens=sum(row.tokens for row in rows),
        supervised=sum(row.supervised for row in rows),
    )


def _json(row: PreparedRow) -> str:
    return json.dumps(row.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)


def _read_split(folder: Path, split: str, file: FileCard) -> list[PreparedRow]:
    path = folder / f"{split}.jsonl"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read {path} ({error.strerror or error}): run `prepare` again") from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise DatasetError(f"{path} is not the file that {CARD} names: it was changed or cut, run `prepare` again")
    return list(_parse(path, content))


def _parse(path: Path, content: bytes) -> Iterator[PreparedRow]:
    for number, line in enumerate(content.splitlines(), 1):
        try:
            yield PreparedRow.model_validate_json(line)
        except ValidationError as error:
            raise DatasetError(f"{path}:{number} is no prepared row ({_first(error)}): run `prepare` again") from error


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))} {problem['msg']}".strip()
