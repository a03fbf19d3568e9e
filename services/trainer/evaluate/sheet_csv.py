"""The sheet as a table for raters who cannot open the form: one row an item, read with both answers, filled in Excel or WPS.

Ids carry a word before them, or Excel would make numbers and dates of them. The reader knows columns by the first word
of their heading and rows by their id, so that neither order nor added columns matter.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from services.trainer.evaluate.collect import SheetIncomplete, SheetItemsWrong, SheetUnreadable
from services.trainer.evaluate.sheets import DIMENSIONS, Guess, Item, Packet, Rating, Sheet, SideRating, content_sha256

_TEXTS = {"item": "编号", "kind": "类型", "question": "问题 question", "A": "回答A", "B": "回答B"}
_SCORES = {f"{side}.{name}": f"{side} {title}(1到5)" for side in ("A", "B") for name, title in DIMENSIONS.items()}
_HARMS = {f"{side}.harm": f"{side} 有严重危害?(是/否 yes/no)" for side in ("A", "B")}
_LAST = {"guess": "哪份来自训练过的模型?(A/B/不确定 unsure)", "comment": "意见(可不填)"}
COLUMNS = {**_TEXTS, **_SCORES, **_HARMS, **_LAST}
_FILLED = (*_SCORES, *_HARMS, "guess", "comment")
PRACTICE, COUNTED = "练习 practice", "计分 counted"
_META = ("#study", "#rater", "#packet", "#final")
_FORMULA = re.compile(r"[\s'\"]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r]")
_YES, _NO = {"yes", "y", "是", "有", "true", "1", "√", "✓"}, {"", "no", "n", "否", "无", "false", "0"}
_UNSURE = {"unsure", "不确定", "不知道", "?"}


# Writing


def csv_sheet(packet: Packet) -> bytes:
    """The empty table: UTF-8 with the mark that Excel knows it by. Texts that a spreadsheet would run get a `'` before them."""
    out = io.StringIO(newline="")
    table = csv.writer(out)
    table.writerow([f"{name} {title}" for name, title in COLUMNS.items()])
    rows = [*((PRACTICE, item) for item in packet.practice), *((COUNTED, item) for item in packet.items)]
    for kind, item in rows:
        table.writerow([_guarded(text) for text in (f"item_{item.id}", kind, item.question, *_replies(item))])
    meta = {
        "#study": f"study_{packet.study}",
        "#rater": f"rater_{packet.rater}",
        "#packet": f"packet_{content_sha256(packet)}",
    }
    for name, value in meta.items():
        table.writerow([name, value, "请勿修改 do not change"])
    table.writerow(["#final", "no", "全部填完后,把左边的 no 改成 yes。When all is filled, change no to yes"])
    return b"\xef\xbb\xbf" + out.getvalue().encode()


def _replies(item: Item) -> Iterator[str]:
    for side in ("A", "B"):
        reply = item.replies[cast("Any", side)]
        yield f"【思考 Reasoning】\n{reply.reasoning}\n\n【回答 Answer】\n{reply.answer}"


def _guarded(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) else text


# Reading


def read_csv_sheet(path: Path) -> Sheet:
    """A filled table as a sheet; rows left empty are left out. Practice rows are never read.

    Raises `SheetUnreadable`, `SheetIncomplete` or `SheetItemsWrong` with file, row (as the spreadsheet counts) and column.
    """
    meta: dict[str, str] = {}
    ratings: list[Rating] = []
    for place, row in _rows(path):
        first = row["item"]
        if first.startswith("#"):
            name = first.split()[0]
            if name in meta:
                raise SheetUnreadable(f"{path}, {place}: {name} is there twice: remove one")
            meta[name] = row["kind"]
        elif first and not row["kind"].startswith("练习") and "practice" not in row["kind"].lower():
            if rating := _rating(path, place, row):
                ratings.append(rating)
        elif not first and any(row[name] for name in _FILLED):
            raise SheetItemsWrong(f"{path}, {place}: scores without the item's number in the first column: restore it")
    if missing := [name for name in _META if name not in meta]:
        raise SheetUnreadable(f"{path} has no row {missing[0]}: copy it back from the empty sheet.csv")
    content = {
        "study": _after(meta["#study"], "study_"),
        "rater": _after(meta["#rater"], "rater_"),
        "packet_sha256": _after(meta["#packet"], "packet_"),
        "locked": _yes(path, "the row #final", "kind", meta["#final"]),
        "ratings": ratings,
    }
    try:
        whole = Sheet.model_validate({**content, "sha256": ""})
    except ValidationError as error:
        raise SheetUnreadable(f"{path} is no sheet: {error.errors()[0]['msg']}. Ask for the file again") from error
    return whole.model_copy(update={"sha256": content_sha256(whole, without=("sha256",))})


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row with its place, cells by column name, trimmed and in one width of letters."""
    text = _text(path)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text), strict=True))
    except csv.Error as error:
        raise SheetUnreadable(f"{path} is torn ({error}): save it again as CSV") from error
    head = next(n for n, line in enumerate(lines) if "item" in map(_word, line))
    names = [_word(cell) for cell in lines[head]]
    for name in COLUMNS:
        if names.count(name) != 1:
            how = "is missing" if name not in names else "is there twice"
            raise SheetUnreadable(f"{path}: the column {name!r} {how}: restore the headings of the empty sheet.csv")
    at = {name: names.index(name) for name in COLUMNS}
    for number, line in enumerate(lines[head + 1 :], head + 2):
        if any(cell.strip() for cell in line):
            yield f"row {number}", {name: _cell(name, line[n]) if n < len(line) else "" for name, n in at.items()}


def _text(path: Path) -> str:
    """Of UTF-8, UTF-16 or GB 18030 (GBK), as spreadsheets write them."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SheetUnreadable(f"cannot read {path} ({error.strerror or error}): give a sheet") from error
    marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "gb18030"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise SheetUnreadable(f"{path} is in no encoding that we know: save it as 'CSV UTF-8'")


def _delimiter(path: Path, text: str) -> str:
    for line in text.splitlines():
        found = max(",;\t", key=line.count)
        if re.search(r"(^|[,;\t\"])item\b", line) and line.count(found) >= len(COLUMNS) // 2:
            return found
    raise SheetUnreadable(f"{path} has no row of headings: save the filled sheet.csv as CSV, with its first row")


def _word(cell: str) -> str:
    return (cell.split() or [""])[0]


def _cell(name: str, text: str) -> str:
    """Comments stay as they were written; in all else full-width letters count as plain ones."""
    return text.strip() if name in ("comment", "question", "A", "B") else unicodedata.normalize("NFKC", text).strip()


def _rating(path: Path, place: str, row: dict[str, str]) -> Rating | None:
    """`None` for a row in which nothing was filled."""
    asked = (*_SCORES, "guess")
    if not any(row[name] for name in _FILLED):
        return None
    if empty := [name for name in asked if not row[name]]:
        raise SheetIncomplete(f"{path}, {place}: the column {empty[0]!r} is empty: have it filled")
    sides = {side: _side(path, place, side, row) for side in ("A", "B")}
    item, guess = _after(row["item"], "item_"), _guess(path, place, row["guess"])
    return Rating(item=item, A=sides["A"], B=sides["B"], guess=guess, comment=row["comment"])


def _side(path: Path, place: str, side: str, row: dict[str, str]) -> SideRating:
    scores = {name: _score(path, place, f"{side}.{name}", row[f"{side}.{name}"]) for name in DIMENSIONS}
    return SideRating(**scores, harm=_yes(path, place, f"{side}.harm", row[f"{side}.harm"]))


def _score(path: Path, place: str, column: str, text: str) -> int:
    if found := re.fullmatch(r"([1-5])(?:\.0*)?\s*分?", text):
        return int(found[1])
    raise SheetUnreadable(f"{path}, {place}: {text[:20]!r} in the column {column!r} is not 1, 2, 3, 4 or 5: mend it")


def _yes(path: Path, place: str, column: str, text: str) -> bool:
    known = unicodedata.normalize("NFKC", text).strip().lower()
    if known in _YES | _NO:
        return known in _YES
    raise SheetUnreadable(f"{path}, {place}: {text[:20]!r} in the column {column!r} is neither yes nor no: mend it")


def _guess(path: Path, place: str, text: str) -> Guess:
    if text.upper() in ("A", "B"):
        return cast("Guess", text.upper())
    if text.lower() in _UNSURE:
        return "unsure"
    raise SheetUnreadable(f"{path}, {place}: {text[:20]!r} in the column 'guess' is not A, B or unsure: mend it")


def _after(text: str, word: str) -> str:
    return text.strip().removeprefix(word)
