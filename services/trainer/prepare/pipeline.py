"""The stages in order: records in, splits and their card out. Writes nothing and prints nothing."""

from __future__ import annotations

import datetime
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from services.contract.chat_format import DEFAULT_SYSTEM_PROMPT, ChatFormat
from services.trainer.config import TrainConfig
from services.trainer.dataset import Card, DatasetError, PreparedRow, data_sha256, file_card, write_rows
from services.trainer.prepare.checks import check_record
from services.trainer.prepare.lengths import length_card
from services.trainer.prepare.near_duplicates import Groups, find_similar, join_similar
from services.trainer.prepare.problems import KINDS, Problem, Problems
from services.trainer.prepare.readers import Read, Record, read_files, read_questions
from services.trainer.prepare.rows import CountedRow, answer_of, make_rows, question_of
from services.trainer.prepare.split import split_rows
from services.trainer.prepare.texts import comparable

# Answers written to one form share more than this in words that do not matter; a copied answer is above it.
_NEAR_ANSWERS = 0.85

Item = TypeVar("Item")


class Progress(Protocol):
    """Shows how far a loop over `items` is; `what` says what it does."""

    def __call__(self, items: Sequence[Item], what: str) -> Iterable[Item]: ...


@dataclass(frozen=True)
class Options:
    """What `prepare` needs to know beyond the config."""

    val_share: float = 0.1
    test_share: float = 0.0
    near: float = 0.7
    held_out: tuple[Path, ...] = ()
    mask_empty_think: bool = False
    allow: frozenset[str] = frozenset()

    def for_card(self) -> dict[str, Any]:
        """Paths by their names only."""
        return {
            "val_share": self.val_share,
            "test_share": self.test_share,
            "near": self.near,
            "held_out": sorted(path.name for path in self.held_out),
            "mask_empty_think": self.mask_empty_think,
            "allow": sorted(self.allow),
        }


@dataclass
class Checked:
    """What can be trained on, and what stands in the way."""

    read: Read
    problems: Problems
    kept: list[CountedRow] = field(default_factory=list)
    group_sizes: Counter[str] = field(default_factory=Counter)
    system_prompt: str = ""


def check_files(
    paths: Sequence[Path], config: TrainConfig, options: Options, chat_format: ChatFormat, progress: Progress
) -> Checked:
    """Reads and checks everything, whatever is found on the way. Raises `DatasetError` for unreadable files."""
    read = read_files(paths, options.mask_empty_think)
    prompt = DEFAULT_SYSTEM_PROMPT if config.system_prompt is None else config.system_prompt
    checked = Checked(read, Problems(options.allow), system_prompt=prompt)
    checked.problems.add(read.problems)
    records = [r for r in progress(read.records, "checking") if not checked.problems.add(check_record(r))]
    records = list(_without_duplicates(records, checked.problems))
    records = _without_held_out(records, options, checked.problems)
    groups = _group(records, options.near, progress)
    for record, group in zip(progress(records, "counting tokens"), groups, strict=True):
        rows, too_long = make_rows(record, group, chat_format, prompt, config.max_length)
        checked.problems.add(too_long)
        checked.kept += rows
        checked.group_sizes[group] += bool(rows)
    return checked


def build(
    checked: Checked, config: TrainConfig, options: Options, chat_format_sha256: str
) -> tuple[Card, dict[str, bytes]]:
    """The card, and the content of each split's file. Raises `DatasetError` when too little is left to split."""
    if not checked.kept:
        raise DatasetError("no row is left to train on: see the problems above")
    rows = [counted.row for counted in checked.kept]
    shares = {"val": options.val_share, "test": options.test_share}
    splits = split_rows(rows, shares, config.seed)
    contents = {split: write_rows(held) for split, held in splits.items()}
    files = {split: file_card(splits[split], content) for split, content in contents.items()}
    sizes = [size for size in checked.group_sizes.values() if size]
    lengths = [counted.lengths for counted in checked.kept]
    parts = {
        "row": [x.row for x in lengths],
        "prompt": [x.prompt for x in lengths],
        "thinking": [x.thinking for x in lengths if x.thinking],
        "answer": [x.answer for x in lengths],
    }
    card = Card(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        data_sha256=data_sha256(files),
        files=files,
        sources=checked.read.sources,
        chat_format_sha256=chat_format_sha256,
        system_prompt=checked.system_prompt,
        max_length=config.max_length,
        seed=config.seed,
        options=options.for_card(),
        formats=dict(Counter(record.form for record in checked.read.records)),
        extra_columns=dict(checked.read.extra),
        dialogues=sum(sizes),
        groups=len(sizes),
        near_duplicate_groups=sum(size > 1 for size in sizes),
        largest_group=max(sizes),
        rows_without_thinking=sum(not row.enable_thinking for row in rows),
        rows_with_tools=sum(bool(row.tools) for row in rows),
        rows_with_history=sum(_has_history(row) for row in rows),
        normalised=checked.read.changed,
        dropped=checked.problems.counts(),
        allowed={kind: checked.problems.allowed[kind] for kind in KINDS if kind in checked.problems.allowed},
        lengths={name: length_card(counts) for name, counts in parts.items() if counts},
    )
    return card, {f"{split}.jsonl": content for split, content in contents.items()}


def _without_duplicates(records: Sequence[Record], problems: Problems) -> Iterable[Record]:
    first: dict[str, str] = {}
    for record in records:
        text = "".join(f"{m.model_dump_json()}\n" for m in record.messages) + repr(record.tools)
        key = hashlib.sha256(text.encode()).hexdigest()
        earlier = first.setdefault(key, record.where)
        repeated = [Problem(record.where, "duplicate", f"the same as {earlier}")] if earlier != record.where else []
        if not problems.add(repeated):
            yield record


def _without_held_out(records: Sequence[Record], options: Options, problems: Problems) -> list[Record]:
    held_out = [record for path in options.held_out for record in read_questions(path)]
    questions = [question_of(record) for record in records]
    similar = find_similar(questions, [question_of(record) for record in held_out], options.near)
    kept: list[Record] = []
    for number, record in enumerate(records):
        like = held_out[similar[number]] if number in similar else None
        asked = [Problem(record.where, "held-out", f"asks what {like.where} asks")] if like else []
        if not problems.add(asked):
            kept.append(record)
    return kept


def _group(records: Sequence[Record], near: float, progress: Progress) -> list[str]:
    """The name of each record's group: those that ask, or answer, the same or nearly."""
    questions = [question_of(record) for record in records]
    answers = {index: text for index, record in enumerate(records) if (text := answer_of(record))}
    similar = Groups(len(records))
    join_similar(dict(enumerate(questions)), near, similar, lambda indices: progress(indices, "comparing questions"))
    threshold = max(near, _NEAR_ANSWERS)
    join_similar(answers, threshold, similar, lambda indices: progress(indices, "comparing answers"))
    firsts = [comparable(questions[similar.root(index)]) for index in range(len(records))]
    return [hashlib.sha256(first.encode()).hexdigest()[:12] for first in firsts]


def _has_history(row: PreparedRow) -> bool:
    return sum(message.role == "user" for message in row.messages) > 1
