"""A prepared data set as it is read back: only what was checked is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.contract.chat_format import Message
from services.trainer.dataset import CARD, DatasetError, PreparedRow, read_card, read_prepared, write_rows
from tests.trainer.tiny import make_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data", rows=6, held_out=2)


def _row(*messages: Message) -> PreparedRow:
    return PreparedRow(id="f:1", group="g", messages=messages, enable_thinking=False, tokens=3, supervised=1)


ASKED = (Message(role="user", content="问"), Message(role="assistant", content="答"))


def test_what_was_written_is_read_back(folder: Path) -> None:
    data = read_prepared(folder)
    assert {split: len(rows) for split, rows in data.rows.items()} == {"train": 6, "val": 2}
    assert write_rows(data.rows["train"]) == (folder / "train.jsonl").read_bytes()


def test_the_cards_system_prompt_goes_before_rows_without_their_own() -> None:
    own = _row(Message(role="system", content="自己的"), *ASKED)
    assert [m.content for m in _row(*ASKED).example("卡片的").messages] == ["卡片的", "问", "答"]
    assert [m.content for m in own.example("卡片的").messages] == ["自己的", "问", "答"]
    assert _row(*ASKED).example("").messages == ASKED


def test_another_system_prompt_may_be_asked_for(folder: Path) -> None:
    data = read_prepared(folder)
    assert data.examples("train")[0].messages[0].content == data.card.system_prompt
    assert data.examples("train", "另一个")[0].messages[0].content == "另一个"


@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_split_that_is_not_the_one_that_was_checked_is_refused(damage: str, folder: Path) -> None:
    path = folder / "train.jsonl"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-50] if damage == "cut" else content.replace("建议".encode(), "不要".encode()))
    with pytest.raises(DatasetError, match="run `prepare` again"):
        read_prepared(folder)


def test_a_card_whose_files_were_exchanged_is_refused(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    card["data_sha256"] = "0" * 64
    (folder / CARD).write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(DatasetError, match="does not name its own data hash"):
        read_prepared(folder)


def test_a_folder_without_a_card_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="make the data set with `prepare` first"):
        read_card(tmp_path)
    (tmp_path / CARD).write_text("{}", encoding="utf-8")
    with pytest.raises(DatasetError, match="is broken"):
        read_card(tmp_path)


def test_a_card_of_a_later_schema_is_refused(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    (folder / CARD).write_text(json.dumps(card | {"schema_version": 99}), encoding="utf-8")
    with pytest.raises(DatasetError, match="is of schema 99"):
        read_card(folder)
