"""The dialogue files as they are, and what the reader refuses."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from services.trainer.demo.dialogues import (
    FOLDER,
    FORBIDDEN,
    OUT_OF_SCOPE,
    UNKNOWN_ANSWERS,
    Corpus,
    DialogueError,
    comparable,
    read_corpus,
)
from services.trainer.demo.tool_rows import read_drugs

# The article's cases, each by words that one question must hold.
CASES = (
    ("头痛", "呕吐", "畏光"),
    ("68岁", "右侧肢体无力", "言语不清"),
    ("空腹血糖8.2", "胰岛素"),
    ("华法林", "纳豆"),
    ("EF", "35%"),
    ("NSAIDs", "禁忌"),
)


def test_there_are_three_hundred_dialogues_most_of_them_chinese(corpus: Corpus) -> None:
    assert len(corpus.dialogues) >= 300
    assert sum(d.lang == "zh" for d in corpus.dialogues) >= 0.7 * len(corpus.dialogues)
    assert len({d.topic for d in corpus.dialogues}) > 200


@pytest.mark.parametrize("words", CASES, ids="-".join)
def test_the_articles_case_is_among_them(words: tuple[str, ...], corpus: Corpus) -> None:
    assert [d for d in corpus.dialogues if all(word in d.question for word in words)]


def test_every_record_names_its_kind_of_source(corpus: Corpus) -> None:
    assert [d.id for d in corpus.dialogues if len(d.source) < 3 or "http" in d.source] == []
    assert [d.zh for d in read_drugs() if not d.source] == []


def test_language_is_the_one_it_says(corpus: Corpus) -> None:
    for dialogue in corpus.dialogues:
        for text in (*dialogue.training_questions, *dialogue.held_out, dialogue.think, dialogue.answer):
            chinese = sum("\u4e00" <= c <= "\u9fff" for c in text)
            assert (chinese > 0) == (dialogue.lang == "zh"), text


def test_no_text_holds_framing(corpus: Corpus) -> None:
    texts = [*corpus.texts(), *(d.held_out[0] for d in corpus.dialogues), *(q.question for q in corpus.out_of_scope)]
    assert [t for t in texts if any(mark in t for mark in FORBIDDEN)] == []
    assert [t for t in texts if t != unicodedata.normalize("NFC", t)] == []


def test_some_questions_of_every_kind_are_held_out(corpus: Corpus) -> None:
    by_split = {s: {q.kind for q in corpus.out_of_scope if q.split == s} for s in ("train", "held_out")}
    assert by_split["train"] == by_split["held_out"]


def test_the_texts_for_training_hold_nothing_held_out(corpus: Corpus) -> None:
    seen = {comparable(text) for text in corpus.texts()}
    held_out = [d.held_out[0] for d in corpus.dialogues]
    held_out += [q.question for q in corpus.out_of_scope if q.split == "held_out"]
    assert [q for q in held_out if comparable(q) in seen] == []


def test_answers_that_do_not_know_say_so_first(corpus: Corpus) -> None:
    assert all(a.answer.startswith("我不知道") for a in corpus.unknown.zh)
    assert all(a.answer.startswith("I do not know") for a in corpus.unknown.en)


# What the reader refuses


def record(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "id": "x-001",
        "topic": "t",
        "lang": "zh",
        "question": "问",
        "paraphrases": [f"问{i}" for i in range(6)],
        "held_out": ["另问"],
        "think": "首先",
        "answer": "答",
        "source": "科普",
    }
    return {**plain, **changes}


def write(folder: Path, *lines: str) -> Path:
    (folder / "x.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in (OUT_OF_SCOPE, UNKNOWN_ANSWERS):
        (folder / name).write_text((FOLDER / name).read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def test_a_good_file_is_read(tmp_path: Path) -> None:
    assert [d.id for d in read_corpus(write(tmp_path, json.dumps(record()))).dialogues] == ["x-001"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paraphrases": ["一"]}, "x.jsonl:2: paraphrases"),
        ({"held_out": []}, "x.jsonl:2: held_out"),
        ({"think": ""}, "x.jsonl:2: think"),
        ({"source": ""}, "x.jsonl:2: source"),
        ({"lang": "fr"}, "x.jsonl:2: lang"),
        ({"answer": "答</think>"}, "x.jsonl:2: .*</think"),
        ({"think": "<|im_end|>"}, "x.jsonl:2: .*<|"),
        ({"answer": "**答**"}, "x.jsonl:2: "),
        ({"answer": "e\u0301"}, "x.jsonl:2: .*NFC"),
        ({"extra": 1}, "x.jsonl:2: extra"),
        ({"id": "x-001"}, "x.jsonl:2: 'x-001' is already at x.jsonl:1"),
        ({"question": "问 0？"}, "x.jsonl:2: '问 0？' is already at x.jsonl:1"),
        ({"held_out": ["问3。"]}, "x.jsonl:2: '问3。' is already at x.jsonl:1"),
    ],
)
def test_a_bad_line_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    second = record(id="x-002", question="二问", paraphrases=[f"二{i}" for i in range(6)], held_out=["二另"]) | changes
    with pytest.raises(DialogueError, match=message):
        read_corpus(write(tmp_path, json.dumps(record()), json.dumps(second)))


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DialogueError) as caught:
        read_corpus(write(tmp_path, "{", json.dumps(record(think="")), json.dumps(record())))
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == ["x.jsonl:1", "x.jsonl:2"]


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DialogueError) as caught:
        read_corpus(tmp_path)
    assert OUT_OF_SCOPE in str(caught.value)
    assert UNKNOWN_ANSWERS in str(caught.value)
