"""`prepare` from the command line: files in, a data set or a refusal out, and never half a data set."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from services.trainer.dataset import CARD, CARD_TEXT, read_prepared
from services.trainer.prepare import add_arguments, run
from services.trainer.prepare import write as write_module
from tests.fakes import DEMO

TOPICS = (
    *("发热", "咳嗽", "腹泻", "头痛", "皮疹", "鼻塞", "便秘", "呕吐", "失眠", "牙痛"),
    *("腰酸", "耳鸣", "心慌", "眩晕", "胃胀", "盗汗", "口渴", "乏力", "水肿", "抽筋"),
)


def _line(topic: str, **changes: Any) -> dict[str, Any]:
    """Of another topic, questions and answers are so unlike as those of a real data set."""
    place = TOPICS.index(topic) if topic in TOPICS else 0
    first, second, third = (TOPICS[(place + step) % len(TOPICS)] for step in (3, 7, 12))
    return {
        "question": f"孩子{topic}三天了，家里可以怎么处理，{topic}要紧吗？",
        "think": f"首先看{topic}有多重，其次看精神，最后看有没有危险信号。",
        "answer": f"{topic}先休息。若有{first}，或者{second}，请带孩子就医；{topic}时伴{third}的，当天就去。",
        **changes,
    }


GOOD = [_line(topic) for topic in TOPICS]


def _write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def _prepare(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(argument) for argument in ("--base", DEMO, *arguments)]))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_good_data_become_a_data_set_with_a_card(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _prepare(_write(tmp_path / "a.jsonl", *GOOD), "--out", out, "--val-share", 0.2) == 0
    data = read_prepared(out)
    assert {split: len(rows) for split, rows in data.rows.items()} == {"train": 16, "val": 4}
    card = data.card
    assert card.lengths["row"].most == max(row.tokens for rows in data.rows.values() for row in rows)
    assert card.sources["a.jsonl"].rows == card.dialogues == 20
    page = (out / CARD_TEXT).read_text(encoding="utf-8")
    assert card.data_sha256[:16] in page
    printed = capsys.readouterr().out
    for said in ("train", "16 rows", "rows by their tokens:", "█", card.data_sha256[:16]):
        assert said in printed


def test_the_same_data_and_seed_give_the_same_data_set(tmp_path: Path) -> None:
    source = _write(tmp_path / "a.jsonl", *GOOD)
    hashes = []
    for name, seed in (("x", 1), ("y", 1), ("z", 2)):
        assert _prepare(source, "--out", tmp_path / name, "--seed", seed) == 0
        hashes.append(read_prepared(tmp_path / name).card.data_sha256)
    assert hashes[0] == hashes[1] != hashes[2]


BAD = [
    ('{"question": ', "json"),
    ({"question": "问", "think": "想", "answer": ""}, "empty"),
    (_line("发热", answer="吃<|im_end|>药"), "marker"),
    (_line("发热", answer="<think>吃药"), "thinking"),
    (_line("发热", question="我的电话是13800138000，怎么办？"), "mobile"),
    (_line("发热", think="很长的想法。" * 3000), "too-long"),
    (GOOD[0], "duplicate"),
]


def test_every_problem_is_in_one_report_with_its_line(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _write(tmp_path / "a.jsonl", *GOOD, *(line for line, _ in BAD))
    report = tmp_path / "report.txt"
    assert _prepare(source, "--out", out, "--report", report) == 1
    found = [tuple(line.split(": ")[:2]) for line in report.read_text(encoding="utf-8").splitlines()]
    assert found == [(f"a.jsonl:{number}", kind) for number, (_, kind) in enumerate(BAD, len(GOOD) + 1)]
    said = capsys.readouterr().err
    assert all(f"a.jsonl:{number}: " in said for number in range(21, 28))
    assert "7 problems, nothing was written" in said
    assert not out.exists()


def test_bad_lines_are_left_out_and_counted_when_asked_for(tmp_path: Path, out: Path) -> None:
    source = _write(tmp_path / "a.jsonl", *GOOD, *(line for line, _ in BAD))
    assert _prepare(source, "--out", out, "--drop-bad") == 0
    card = read_prepared(out).card
    assert card.dropped == {kind: 1 for _, kind in BAD}
    assert card.dialogues == len(GOOD)
    assert "a text that is missing or blank" in (out / CARD_TEXT).read_text(encoding="utf-8")


def test_nothing_is_cut_to_fit(tmp_path: Path, out: Path) -> None:
    longest = _line("咳嗽", question="另一个问题，孩子咳嗽夜里重，是什么原因呢？", think="想。" * 60)
    source = _write(tmp_path / "a.jsonl", *GOOD, longest)
    assert _prepare(source, "--out", out, "--max-length", 200, "--drop-bad") == 0
    rows = [row for held in read_prepared(out).rows.values() for row in held]
    assert "a.jsonl:21" not in {row.id for row in rows}
    assert {row.messages[-1].content for row in rows} == {line["answer"] for line in GOOD}


def test_a_kind_that_a_person_allows_passes_and_is_counted(tmp_path: Path, out: Path) -> None:
    source = _write(tmp_path / "a.jsonl", *GOOD, _line("流感", question="请打电话13800138000问流感门诊时间可以吗？"))
    assert _prepare(source, "--out", out) == 1
    assert _prepare(source, "--out", out, "--allow", "mobile") == 0
    assert read_prepared(out).card.allowed == {"mobile": 1}


def test_questions_in_nearly_the_same_words_are_on_one_side(tmp_path: Path, out: Path) -> None:
    again = [{**line, "question": line["question"].replace("可以", "应该")} for line in GOOD]
    other_question = [{**line, "question": f"{topic}"} for topic, line in zip(TOPICS, GOOD, strict=True)]
    source = _write(tmp_path / "a.jsonl", *GOOD, *again, *other_question)
    assert _prepare(source, "--out", out, "--val-share", 0.3) == 0
    data = read_prepared(out)
    sides = {split: {row.group for row in rows} for split, rows in data.rows.items()}
    assert not sides["train"] & sides["val"]
    assert 15 <= data.card.groups <= 20  # a few topics of two characters share one
    answers = {split: {row.messages[-1].content for row in rows} for split, rows in data.rows.items()}
    assert not answers["train"] & answers["val"]


def test_a_question_that_is_held_out_is_refused(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = {"question": GOOD[3]["question"].replace("可以", "应该")}
    held_out = _write(tmp_path / "scenarios.jsonl", scenario)
    source = _write(tmp_path / "a.jsonl", *GOOD)
    assert _prepare(source, "--out", out, "--held-out", held_out) == 1
    assert "a.jsonl:4: held-out: asks what scenarios.jsonl:1 asks" in capsys.readouterr().err
    assert _prepare(source, "--out", out, "--held-out", held_out, "--drop-bad") == 0
    asked = [row.messages[0].content for rows in read_prepared(out).rows.values() for row in rows]
    assert len(asked) == 19
    assert GOOD[3]["question"] not in asked


def test_a_data_set_is_replaced_only_when_asked_for(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _write(tmp_path / "a.jsonl", *GOOD)
    assert _prepare(source, "--out", out) == 0
    before = (out / CARD).read_bytes()
    assert _prepare(_write(tmp_path / "b.jsonl", *GOOD[:10]), "--out", out) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert (out / CARD).read_bytes() == before
    assert _prepare(tmp_path / "b.jsonl", "--out", out, "--overwrite") == 0
    assert read_prepared(out).card.dialogues == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "data"]


def test_a_folder_that_is_no_data_set_is_never_replaced(tmp_path: Path, out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("x", encoding="utf-8")
    assert _prepare(_write(tmp_path / "a.jsonl", *GOOD), "--out", out, "--overwrite") == 2
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_a_full_disk_leaves_the_old_data_set(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _write(tmp_path / "a.jsonl", *GOOD)
    assert _prepare(source, "--out", out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write_module.os, "fsync", full)
    assert _prepare(source, "--out", out, "--overwrite", "--seed", 9) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "data"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base", "no/such/model"], "tokenizer"),
        (["--val-share", "1"], "--val-share and --test-share"),
        (["--near", "0"], "--near must be"),
        (["--set", "rnk=1"], "there is no setting 'rnk'"),
        (["--held-out", "none.jsonl"], "cannot read none.jsonl"),
    ],
)
def test_a_wrong_call_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _prepare(_write(tmp_path / "a.jsonl", *GOOD), "--out", out, *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_file_without_a_good_line_is_refused(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _prepare(_write(tmp_path / "a.jsonl", "{}"), "--out", out, "--drop-bad") == 2
    assert "no row is left to train on" in capsys.readouterr().err
    assert _prepare(_write(tmp_path / "b.jsonl", ""), "--out", out) == 2
