"""A prepared data set to rows of ids, with the place where each answer begins. Needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from services.contract.chat_format import END_THINK, ChatFormat, ChatFormatError
from services.trainer.dataset import DatasetError, Prepared
from services.trainer.encode import IGNORED, EncodeError, Example, Row, encode


@dataclass(frozen=True)
class TrainingRow:
    """A row, and where its answer begins: supervised ids before that place are reasoning and its framing."""

    row: Row
    answer_start: int

    def __len__(self) -> int:
        return len(self.row.ids)


def load_chat_format(base: Path) -> ChatFormat:
    """The base's tokenizer. Raises `DatasetError` when it is missing or not Qwen3's."""
    from tokenizers import Tokenizer

    try:
        return ChatFormat.load(base, Tokenizer.from_str)
    except ChatFormatError as error:
        raise DatasetError(f"the base's tokenizer cannot be used: {error}. Download the model again") from error


def check_tokenizer(data: Prepared, chat_format: ChatFormat, base: Path) -> None:
    """Raises `DatasetError` when lengths and checks of the data were made with another tokenizer than the base's."""
    if data.card.chat_format_sha256 != chat_format.digest:
        raise DatasetError(
            f"{data.folder} was prepared with another tokenizer than that of {base}: run `prepare` with this base"
        )


def training_rows(
    data: Prepared, split: str, chat_format: ChatFormat, system_prompt: str | None, max_length: int
) -> list[TrainingRow]:
    """The split's rows. Raises `DatasetError` for one that is longer than `max_length`: nothing is cut."""
    examples = data.examples(split, system_prompt)
    progress = tqdm(examples, desc=f"encoding {split}", unit=" rows", disable=not sys.stderr.isatty(), leave=False)
    rows = list(encode_rows(progress, chat_format))
    too_long = [len(row) for row in rows if len(row) > max_length]
    if too_long:
        raise DatasetError(
            f"{len(too_long)} rows of {split} are longer than max_length {max_length}, the longest has {max(too_long)} "
            "tokens: raise max_length, or run `prepare` with the smaller one"
        )
    return rows


def encode_rows(examples: Iterable[Example], chat_format: ChatFormat) -> Iterable[TrainingRow]:
    """Raises `DatasetError` that names the row by its number, from 1."""
    for number, example in enumerate(examples, 1):
        try:
            row = encode(example, chat_format)
        except EncodeError as error:
            raise DatasetError(f"row {number} cannot be learned: {error}. Run `prepare` again") from error
        yield TrainingRow(row, answer_start(row, chat_format))


def answer_start(row: Row, chat_format: ChatFormat) -> int:
    """Index of the answer's first id: after the supervised `</think>` and its blank line, if there is one."""
    begin = next(i for i, label in enumerate(row.labels) if label != IGNORED)
    end_think = chat_format.control_ids[END_THINK]
    if end_think not in row.ids[begin:]:
        return begin
    return row.ids.index(end_think, begin) + 1 + len(chat_format.encode_text("\n\n"))


def supervised_tokens(rows: Sequence[TrainingRow]) -> int:
    return sum(label != IGNORED for row in rows for label in row.row.labels)
