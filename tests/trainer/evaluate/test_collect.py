"""What is refused, by name and with the file, and what of the rest is counted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.trainer.evaluate.answers import AnswersDamaged
from services.trainer.evaluate.collect import (
    SEAL,
    Collected,
    KeyMismatch,
    RaterUnknown,
    RunMismatch,
    SheetDuplicate,
    SheetIncomplete,
    SheetItemsWrong,
    SheetMissing,
    SheetOfOtherStudy,
    SheetTampered,
    SheetUnlocked,
    SheetUnreadable,
    SimulatedMixed,
    collect,
)
from services.trainer.evaluate.sheets import Rating, Sheet, SheetError, SideRating, content_sha256
from services.trainer.evaluate.simulate import Raters, make_sheet, simulate_sheets
from tests.trainer.evaluate.study import Study, make_study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Three raters' sheets, all as they should be."""
    made = make_study(tmp_path, scenarios=3, raters=3)
    for sheet in simulate_sheets(made.key, Raters(), seed=1):
        made.write(sheet)
    return made


def read(study: Study, **options: Any) -> Collected:
    return collect(study.run, study.packets, study.key_path, [study.sheets], **options)


def rewrite(of: Study, /, **changes: Any) -> Path:
    """R2's sheet with these changes, and a hash that fits."""
    sheet = Sheet.model_validate_json((of.sheets / "R2.json").read_bytes()).model_copy(update=changes)
    whole = sheet.model_copy(update={"sha256": content_sha256(sheet, without=("sha256",))})
    return of.write(whole, "R2")


def ratings(study: Study, rater: str = "R2") -> tuple[Rating, ...]:
    return Sheet.model_validate_json((study.sheets / f"{rater}.json").read_bytes()).ratings


def test_every_rating_is_read_and_repeats_are_not_counted(study: Study) -> None:
    found = read(study)
    assert len(found.rated) == 3 * 4
    assert len(found.counted) == 3 * 3
    assert found.raters == ("R1", "R2", "R3")
    assert found.simulated
    assert (found.missing, found.unrated) == ((), {})


def test_the_key_turns_sides_into_arms(study: Study) -> None:
    best, worst = (SideRating(logic=n, accuracy=n, risk=n, readability=n, harm=n == 1) for n in (5, 1))
    for rater, part in study.key.raters.items():
        rated = tuple(
            Rating(
                item=item.id,
                A=best if item.A == "adapter" else worst,
                B=worst if item.A == "adapter" else best,
                guess="A",
            )
            for item in part.items
        )
        study.write(make_sheet(study.key, rater, rated, simulated=False))
    for rated_pair in read(study).rated:
        assert rated_pair.sides == {"adapter": best, "base": worst}
        item = next(i for i in study.key.raters[rated_pair.rater].items if i.id == rated_pair.item)
        assert rated_pair.guess == ("correct" if item.A == "adapter" else "wrong")


def test_practice_is_left_out(study: Study) -> None:
    plain = SideRating(logic=1, accuracy=1, risk=1, readability=1)
    rewrite(study, ratings=(*ratings(study), Rating(item="0" * 12, A=plain, B=plain, guess="A")))
    found = read(study)
    assert found.practice == 1
    assert len(found.rated) == 3 * 4


Break = Callable[[Study], Any]
BROKEN: dict[str, tuple[type[SheetError], Break, str]] = {
    "unlocked": (SheetUnlocked, lambda s: rewrite(s, locked=False), "R2.json is not final"),
    "another study": (SheetOfOtherStudy, lambda s: rewrite(s, study="6" * 16), "R2.json is of study 6666"),
    "another packet": (SheetOfOtherStudy, lambda s: rewrite(s, packet_sha256="6" * 64), "another version"),
    "a stranger": (RaterUnknown, lambda s: rewrite(s, rater="R9"), "R9, who is not in this study"),
    "half filled": (SheetIncomplete, lambda s: rewrite(s, ratings=ratings(s)[:3]), "1 of 4 items"),
    "an item twice": (SheetItemsWrong, lambda s: rewrite(s, ratings=(*ratings(s), ratings(s)[0])), "rated twice"),
    "another's items": (SheetItemsWrong, lambda s: rewrite(s, ratings=ratings(s, "R1")), "never given to R2"),
    "a real one among simulated": (SimulatedMixed, lambda s: rewrite(s, simulated=False), "score them apart"),
    "another format": (SheetUnreadable, lambda s: rewrite(s, format=2), "of format 2"),
    "no sheet": (SheetMissing, lambda s: (s.sheets / "R2.json").unlink(), "no sheet of R2"),
    "no sheets": (SheetMissing, lambda s: [p.unlink() for p in s.sheets.iterdir()], "there is no sheet"),
    "not JSON": (SheetUnreadable, lambda s: (s.sheets / "R2.json").write_text("{"), "R2.json is not a sheet"),
    "no key": (SheetUnreadable, lambda s: s.key_path.unlink(), "give the key"),
    "no seal": (SheetUnreadable, lambda s: (s.packets / SEAL).unlink(), "give the seal"),
}


@pytest.mark.parametrize(("kind", "break_", "told"), BROKEN.values(), ids=list(BROKEN))
def test_refused_by_name(study: Study, kind: type[SheetError], break_: Break, told: str) -> None:
    break_(study)
    with pytest.raises(kind, match=told):
        read(study)


def test_one_changed_score_is_found(study: Study) -> None:
    path = study.sheets / "R2.json"
    content = json.loads(path.read_text())
    content["ratings"][0]["A"]["risk"] = content["ratings"][0]["A"]["risk"] % 5 + 1
    path.write_text(json.dumps(content))
    with pytest.raises(SheetTampered, match=r"R2\.json"):
        read(study)


def test_two_sheets_of_a_rater_are_named_both(study: Study) -> None:
    shutil.copy(study.sheets / "R2.json", study.sheets / "R2-copy.json")
    with pytest.raises(SheetDuplicate, match=r"R2-copy\.json and .*R2\.json .*copies of one sheet"):
        read(study)
    (study.sheets / "R2-copy.json").unlink()
    changed = (ratings(study)[0].model_copy(update={"comment": "x"}), *ratings(study)[1:])
    shutil.copy(study.sheets / "R2.json", study.sheets / "R4.json")
    rewrite(study, ratings=changed)
    with pytest.raises(SheetDuplicate, match="differ"):
        read(study)


def test_a_file_named_twice_is_one(study: Study) -> None:
    paths = [study.sheets, study.sheets / "R2.json"]
    assert len(collect(study.run, study.packets, study.key_path, paths).rated) == 12


def test_a_key_that_was_changed_opens_nothing(study: Study) -> None:
    key = json.loads(study.key_path.read_text())
    first = key["raters"]["R1"]["items"][0]
    first["A"] = "base" if first["A"] == "adapter" else "adapter"
    study.key_path.write_text(json.dumps(key))
    with pytest.raises(KeyMismatch, match="its hash differs"):
        read(study)


def test_a_packet_that_was_changed_is_found(study: Study) -> None:
    path = study.packets / "R1.json"
    path.write_text(path.read_text().replace("就诊", "观察"))
    with pytest.raises(SheetTampered, match=r"R1\.json"):
        read(study)


def test_answers_of_another_run_are_refused(study: Study, tmp_path: Path) -> None:
    other = make_study(tmp_path / "other", scenarios=4, raters=2)
    with pytest.raises(RunMismatch, match="other answers"):
        collect(other.run, study.packets, study.key_path, [study.sheets])
    (study.run / "answers.jsonl").chmod(0o644)
    with (study.run / "answers.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(AnswersDamaged):
        read(study)


def test_what_is_allowed_to_be_missing_is_said(study: Study) -> None:
    (study.sheets / "R3.json").unlink()
    rewrite(study, ratings=ratings(study)[:2])
    found = read(study, allow_missing=("R3",), allow_partial=True)
    assert found.missing == ("R3",)
    assert found.unrated == {"R2": 2}
    with pytest.raises(RaterUnknown, match="R7"):
        read(study, allow_missing=("R7",))


def test_a_sheet_as_csv_is_not_passed_over(study: Study) -> None:
    (study.sheets / "R2.json").unlink()
    (study.sheets / "R2.csv").write_text("not,a,sheet\n")
    with pytest.raises(SheetError):
        read(study)
