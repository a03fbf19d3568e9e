"""`blind`: what it draws is balanced, what it gives out tells nothing, and it makes all or nothing."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer import blind
from services.trainer.__main__ import main
from services.trainer.evaluate.answers import Run, dump_answers, make_answer, read_run, replace_file, write_record
from services.trainer.evaluate.collect import collect
from services.trainer.evaluate.packets import (
    LEAST_SCENARIOS,
    ArmNamed,
    RatersWrong,
    RunTooSmall,
    check_raters,
    make_packets,
    plain,
)
from services.trainer.evaluate.sheets import Key, Packet, Seal, content_sha256
from services.trainer.evaluate.simulate import Raters, write_simulated_sheets
from tests.trainer.evaluate.fake_api import ADAPTER, VERSION
from tests.trainer.evaluate.study import make_study

NAMES = tuple(f"r{n}" for n in range(1, 8))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    folder = tmp_path_factory.mktemp("runs")
    return {count: read_run(make_study(folder / str(count), count, 1).run) for count in (6, 7, 12, 36)}


@given(seed=st.integers(0, 2**32), raters=st.integers(2, 7), count=st.sampled_from([6, 7, 12, 36]))
@settings(max_examples=40, deadline=None)
def test_sides_are_balanced_and_repeats_stand_apart(runs: dict[int, Run], seed: int, raters: int, count: int) -> None:
    packets, key = make_packets(runs[count], NAMES[:raters], random.Random(seed))
    of_scenario: dict[str, list[str]] = {}
    for packet in packets:
        items = key.raters[packet.rater].items
        assert [item.id for item in packet.items] == [item.id for item in items]
        assert abs(sum(1 if item.A == "base" else -1 for item in items)) <= 1
        first = [item for item in items if item.repeat_of is None]
        assert {item.scenario for item in first} == {s.id for s in runs[count].scenarios}
        assert len(first) == count
        assert len(items) - count == max(1, round(count / 10))
        assert all(a.scenario != b.scenario for a, b in itertools.pairwise(items))
        at = {item.id: n for n, item in enumerate(items)}
        for item in items:
            if item.repeat_of is not None:
                assert at[item.repeat_of] < at[item.id] - 1
                assert items[at[item.repeat_of]].scenario == item.scenario
        for item in first:
            of_scenario.setdefault(item.scenario, []).append(item.A)
        assert key.raters[packet.rater].packet_sha256 == content_sha256(packet)
    assert all(abs(arms.count("base") - arms.count("adapter")) <= 1 for arms in of_scenario.values())


def test_raters_share_no_id_and_no_order_but_the_answers(runs: dict[int, Run]) -> None:
    packets, key = make_packets(runs[36], NAMES[:5], random.Random(1))
    ids = [item.id for packet in packets for item in (*packet.practice, *packet.items)]
    assert len(set(ids)) == len(ids)
    orders = {tuple(item.scenario for item in part.items) for part in key.raters.values()}
    assert len(orders) == 5
    seeds = {frozenset((item.scenario, item.seed) for item in part.items) for part in key.raters.values()}
    assert len(seeds) == 1


def test_each_side_shows_the_reply_that_the_key_says(tmp_path: Path) -> None:
    run = _run_with(tmp_path, lambda arm, n: f"{'第一种' if arm == 'base' else '第二种'}回答{n}")
    packets, key = make_packets(run, NAMES[:3], random.Random(3))
    for packet in packets:
        for item, known in zip(packet.items, key.raters[packet.rater].items, strict=True):
            for side in ("A", "B"):
                expected = run.answer(known.scenario, known.arm(side), known.seed).answer
                assert item.replies[side].answer == expected


def test_a_seed_draws_the_same_again_but_study_and_salt(runs: dict[int, Run]) -> None:
    (one, first), (two, second) = (make_packets(runs[12], NAMES[:3], random.Random(9)) for _ in range(2))
    assert [packet.items for packet in one] == [packet.items for packet in two]
    assert first.study != second.study
    assert first.salt != second.salt
    (other, _) = make_packets(runs[12], NAMES[:3], random.Random(10))
    assert [packet.items for packet in one] != [packet.items for packet in other]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _blind(run: Path, folder: Path, *more: str) -> int:
    places = ["--run", str(run), "--out", str(folder / "packets"), "--key", str(folder / "key.json")]
    return main(["blind", *places, *more])


def test_nothing_that_is_given_out_tells_the_arms(tmp_path: Path) -> None:
    run = _run_with(tmp_path, lambda arm, n: f"请就诊。{n}")
    assert _blind(run.folder, tmp_path, "--raters", "anna,ben,3rd") == 0
    packets = tmp_path / "packets"
    hidden = ["Qwen", ADAPTER, VERSION, "kids", "adapter", "1234567", str(run.folder), "repeat_of"]
    hidden += [scenario.id for scenario in run.scenarios] + [answer.id for answer in run.answers]
    names = {str(path.relative_to(packets)) for path in _files(packets)}
    assert names == {"seal.json"} | {
        f"{r}{end}" for r in ("anna", "ben", "3rd") for end in (".json", "/form.html", "/sheet.csv")
    }
    for path in _files(packets):
        text = path.read_text(encoding="utf-8-sig").replace("base-uri", "")
        found = [word for word in hidden if re.search(rf"(?<![0-9a-z]){re.escape(word)}(?![0-9a-z])", text, re.I)]
        assert not found, (path, found)
        assert not re.search(r"\bbase\b", text), path
        if path.name != "seal.json":
            assert not re.search(r"\b20\d\d-\d\d|\b1[0-9]{9}\b", text), path
    moments = {path.stat().st_mtime for path in packets.rglob("*")}
    assert len(moments) == 1
    sizes = {rater: (packets / rater / "form.html").stat().st_size for rater in ("anna", "ben", "3rd")}
    assert sizes["anna"] == sizes["ben"] + 1 == sizes["3rd"] + 1  # by the name alone


def test_key_and_seal_fit_and_the_key_is_its_owners(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    assert _blind(study.run, tmp_path) == 0
    path = tmp_path / "key.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = Key.model_validate_json(path.read_bytes())
    seal = Seal.model_validate_json((tmp_path / "packets/seal.json").read_bytes())
    assert seal.key_sha256 == content_sha256(key)
    for rater, digest in seal.raters.items():
        packet = Packet.model_validate_json((tmp_path / f"packets/{rater}.json").read_bytes())
        assert content_sha256(packet) == digest
        assert len(packet.practice) == 2
    sheets = write_simulated_sheets(path, tmp_path / "sheets", Raters(), seed=2)
    collected = collect(study.run, tmp_path / "packets", path, sheets)
    assert len(collected.counted) == 5 * 12


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        (["--raters", "1"], "RatersWrong"),
        (["--raters", "a,A"], "RatersWrong"),
        (["--raters", "a,../b"], "RatersWrong"),
        (["--raters", "a,seal"], "RatersWrong"),
        (["--key", "packets/key.json"], "KeyMisplaced"),
        (["--key", "packets/../packets/deep/key.json"], "KeyMisplaced"),
        (["--key", "old.json"], "KeyMisplaced"),
        (["--key", "nowhere/key.json"], "KeyMisplaced"),
        (["--out", "full"], "PacketsExist"),
        (["--out", "old.json"], "PacketsExist"),
        (["--run", "nowhere"], "AnswersMissing"),
    ],
)
def test_what_is_refused_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    refused: str,
) -> None:
    study = make_study(tmp_path / "study")
    monkeypatch.chdir(tmp_path)
    Path("old.json").write_text("kept")
    Path("full").mkdir()
    Path("full/file").write_text("kept")
    before = _files(tmp_path)
    plain_places = ["--run", str(study.run), "--out", "packets", "--key", "key.json"]
    assert main(["blind", *plain_places, *more]) == 2
    assert capsys.readouterr().err.startswith(f"{refused}: ")
    assert _files(tmp_path) == before
    assert not Path("packets").exists()


def test_a_disk_that_fails_leaves_no_key_and_no_packet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(tmp_path / "study")
    written: list[Path] = []

    def fail(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr(blind, "_write", fail)
    before = _files(tmp_path)
    with pytest.raises(OSError, match="No space"):
        _blind(study.run, tmp_path)
    assert _files(tmp_path) == before
    assert not (tmp_path / "packets").exists()


def test_a_run_with_few_scenarios_is_refused(tmp_path: Path) -> None:
    run = read_run(make_study(tmp_path, LEAST_SCENARIOS - 1, 1).run)
    with pytest.raises(RunTooSmall, match="ask more"):
        make_packets(run, NAMES[:2], random.Random(1))


@pytest.mark.parametrize("name", ["Qwen3-1.7b", ADAPTER, VERSION])
def test_a_reply_that_names_its_model_is_never_shown(tmp_path: Path, name: str) -> None:
    run = _run_with(tmp_path, lambda arm, n: f"我是{name}。" if (arm, n) == ("adapter", 3) else "就诊")
    with pytest.raises(ArmNamed, match="t03"):
        make_packets(run, NAMES[:2], random.Random(1))


def test_an_answer_that_ended_with_an_error_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _run_with(tmp_path, lambda arm, n: "就诊", finish=lambda arm, n: "error" if n == 2 else "stop")
    assert _blind(run.folder, tmp_path) == 2
    assert capsys.readouterr().err.startswith("AnswerFailed: ")


@given(st.text(alphabet=st.sampled_from(list("字a \t\r\n\u2028\u200b\ufeff\x00-")), max_size=40))
def test_white_space_has_one_form(text: str) -> None:
    shown = plain(text)
    assert shown == shown.strip()
    assert plain(shown) == shown
    assert not re.search(r"[\t\r\u2028\u200b\ufeff\x00]|\n{3}| \n", shown)
    assert [c for c in shown if c not in " \n"] == [c for c in text if c in "字a-"]


def test_replies_without_text_look_alike_whatever_the_arm(tmp_path: Path) -> None:
    run = _run_with(tmp_path, lambda arm, n: "  \n")
    packets, _ = make_packets(run, NAMES[:2], random.Random(1))
    assert {item.replies[side].answer for item in packets[0].items for side in ("A", "B")} == {
        "(没有给出回答 no answer)"
    }


def test_numbers_and_names_of_raters() -> None:
    check_raters(NAMES)
    with pytest.raises(RatersWrong):
        check_raters(["x" * 33, "y"])


def _run_with(
    folder: Path, text: Callable[[str, int], str], finish: Callable[[str, int], str] = lambda arm, n: "stop"
) -> Run:
    """A run of seven scenarios with these answers by arm and number."""
    run = read_run(make_study(folder / "study", 7, 1).run)
    answers = []
    for answer in run.answers:
        number = int(answer.scenario[1:])
        changed = answer.model_dump(exclude={"id", "sha256"})
        changed |= {"answer": text(answer.arm, number), "finish_reason": finish(answer.arm, number)}
        changed |= {"usage": {"completion_tokens": 1234567}}
        answers.append(make_answer(json.loads(json.dumps(changed))))
    content = dump_answers(answers)
    replace_file(run.folder / "answers.jsonl", content)
    write_record(run.folder, run.record.model_copy(update={"answers_sha256": hashlib.sha256(content).hexdigest()}))
    return read_run(run.folder)
