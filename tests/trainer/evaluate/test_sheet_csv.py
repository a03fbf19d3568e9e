"""The table: filled in whatever spreadsheet, it gives the sheet that the form would give, or an error with row and column."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.evaluate.collect import SheetIncomplete, SheetItemsWrong, SheetUnreadable
from services.trainer.evaluate.sheet_csv import COLUMNS, csv_sheet, read_csv_sheet
from services.trainer.evaluate.sheets import Item, Packet, Reply, SheetError, content_sha256

NAMES = list(COLUMNS)
COUNT = 6


def packet(answer: str = "就诊") -> Packet:
    reply = Reply(reasoning="首先,\n看症状", answer=answer)
    items = tuple(
        Item(id=f"{n:012x}", question=f'问题{n},"引号"\n第二行', replies={"A": reply, "B": reply}) for n in range(COUNT)
    )
    return Packet(study="5" * 16, rater="r1", practice=items[:1], items=items[1:])


def table(made: Packet) -> list[list[str]]:
    return list(csv.reader(io.StringIO(csv_sheet(made).decode("utf-8-sig"), newline="")))


def filled(made: Packet, final: str = "yes") -> list[list[str]]:
    rows = table(made)
    for n, row in enumerate(rows[1:], 1):
        if row[0] == "#final":
            row[1] = final
        elif row[0].startswith("item_"):
            row += [""] * (len(NAMES) - len(row))
            for name in NAMES:
                if name.endswith(("logic", "accuracy", "risk", "readability")):
                    row[NAMES.index(name)] = str(n % 5 + 1)
            row[NAMES.index("A.harm")] = "是" if n % 2 else "否"
            row[NAMES.index("guess")] = ("A", "b", "不确定")[n % 3]
            row[NAMES.index("comment")] = f"意见 {n}, 好"
    return rows


def saved(path: Path, rows: list[list[str]], encoding: str = "utf-8-sig", delimiter: str = ",") -> Path:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows(rows)
    path.write_bytes(out.getvalue().encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_reads_the_same_however_it_was_saved(tmp_path: Path, encoding: str, delimiter: str) -> None:
    made = packet()
    plain = read_csv_sheet(saved(tmp_path / "a.csv", filled(made)))
    assert read_csv_sheet(saved(tmp_path / "b.csv", filled(made), encoding, delimiter)) == plain
    assert plain.locked
    assert plain.packet_sha256 == content_sha256(made)
    assert plain.sha256 == content_sha256(plain, without=("sha256",))
    assert [r.item for r in plain.ratings] == [i.id for i in made.items]
    assert [r.guess for r in plain.ratings] == ["unsure", "A", "B", "unsure", "A"]
    assert plain.ratings[0].comment == "意见 2, 好"


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30)
def test_the_order_of_rows_and_columns_does_not_matter(tmp_path_factory: Any, seed: int) -> None:
    folder, dice = tmp_path_factory.mktemp("sheet"), random.Random(seed)
    rows = filled(packet())
    width = len(NAMES)
    order = [*dice.sample(range(1, width), width - 1)]
    # The meta rows have their value in the second column, which therefore stays with the first.
    order = [0, 1, *[n for n in order if n != 1]]
    body = rows[1:]
    dice.shuffle(body)
    mixed = [[(row + [""] * width)[n] for n in order] for row in [rows[0], *body]]
    one = read_csv_sheet(saved(folder / "a.csv", rows))
    two = read_csv_sheet(saved(folder / "b.csv", mixed))
    assert sorted(one.ratings, key=lambda r: r.item) == sorted(two.ratings, key=lambda r: r.item)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "  =1", "＝1"])
def test_no_text_of_a_model_is_a_formula(text: str) -> None:
    rows = table(packet(answer=text))
    for row in rows:
        for cell in row:
            assert not cell.lstrip().startswith(("=", "+", "@", "＝")), cell
            assert not cell.startswith(("-", "\t"))


def test_an_untouched_table_is_not_final_and_has_no_rating(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(csv_sheet(packet()))
    sheet = read_csv_sheet(tmp_path / "a.csv")
    assert not sheet.locked
    assert sheet.ratings == ()


def changed(rows: list[list[str]], row: int, column: str, text: str) -> list[list[str]]:
    rows[row][NAMES.index(column)] = text
    return rows


@pytest.mark.parametrize(
    ("column", "text", "kind", "said"),
    [
        ("A.logic", "6", SheetUnreadable, "A.logic"),
        ("A.logic", "3.5", SheetUnreadable, "A.logic"),
        ("B.risk", "", SheetIncomplete, "B.risk"),
        ("guess", "", SheetIncomplete, "guess"),
        ("guess", "C", SheetUnreadable, "guess"),
        ("A.harm", "也许", SheetUnreadable, "A.harm"),
        ("item", "", SheetItemsWrong, "first column"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path: Path, column: str, text: str, kind: type[SheetError], said: str) -> None:
    with pytest.raises(kind, match=said) as caught:
        read_csv_sheet(saved(tmp_path / "a.csv", changed(filled(packet()), 3, column, text)))
    assert "row 4" in str(caught.value)


def test_full_width_and_spelt_scores_count(tmp_path: Path) -> None:
    rows = changed(changed(filled(packet()), 3, "A.logic", "４"), 4, "A.logic", "4.0 分")
    logic = [rating.A.logic for rating in read_csv_sheet(saved(tmp_path / "a.csv", rows)).ratings]
    assert logic[1:3] == [4, 4]


@pytest.mark.parametrize("lost", ["#study", "#rater", "#packet", "#final"])
def test_a_lost_row_is_named(tmp_path: Path, lost: str) -> None:
    rows = [row for row in filled(packet()) if row[0] != lost]
    with pytest.raises(SheetUnreadable, match=lost):
        read_csv_sheet(saved(tmp_path / "a.csv", rows))


def test_a_lost_column_or_no_table_at_all_is_named(tmp_path: Path) -> None:
    at = NAMES.index("B.risk")
    rows = [row[:at] + row[at + 1 :] for row in filled(packet())]
    with pytest.raises(SheetUnreadable, match=r"B\.risk"):
        read_csv_sheet(saved(tmp_path / "a.csv", rows))
    (tmp_path / "b.csv").write_text("hello", encoding="utf-8")
    with pytest.raises(SheetUnreadable, match="headings"):
        read_csv_sheet(tmp_path / "b.csv")
    with pytest.raises(SheetUnreadable, match="cannot read"):
        read_csv_sheet(tmp_path / "c.csv")
