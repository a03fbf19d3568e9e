"""What was put into made-up raters comes out of the statistics; what was not put in does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.trainer.evaluate.collect import SheetMissing, collect
from services.trainer.evaluate.report import make_report
from services.trainer.evaluate.sheets import DIMENSIONS, SheetError
from services.trainer.evaluate.simulate import Raters, simulate_sheets, write_simulated_sheets
from tests.trainer.evaluate.study import Study, make_study

EFFECT = {"logic": 0.8, "accuracy": 0.5, "risk": 0.0, "readability": -0.6}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"), scenarios=30, raters=5, repeats=3)


def score(study: Study, folder: Path, raters: Raters, seed: int = 7, missing: tuple[str, ...] = ()) -> dict[str, Any]:
    for sheet in simulate_sheets(study.key, raters, seed, missing):
        (folder / f"{sheet.rater}.json").write_text(sheet.model_dump_json())
    return make_report(collect(study.run, study.packets, study.key_path, [folder], allow_missing=missing))


def test_an_effect_is_found_where_it_was_put(study: Study, tmp_path: Path) -> None:
    report = score(study, tmp_path, Raters(effect=EFFECT))  # type: ignore[arg-type]
    for name, effect in EFFECT.items():
        part = report["dimensions"][name]
        assert part["change"]["low"] <= effect <= part["change"]["high"], name
        assert (part["p_holm"] < 0.05) == (effect != 0), name
    assert report["simulated"]


def test_without_an_effect_significance_is_rare(study: Study, tmp_path: Path) -> None:
    """Holm holds the chance of any false alarm in a report to 5 %: 4 of 12 or more has a chance below 0.003."""
    found = 0
    for seed in range(12):
        report = score(study, tmp_path, Raters(), seed)
        found += any(report["dimensions"][name]["p_holm"] < 0.05 for name in DIMENSIONS)
    assert found <= 3


def test_raters_who_see_nothing_alike_are_called_unreliable(study: Study, tmp_path: Path) -> None:
    alike = score(study, tmp_path, Raters(quality_sd=1.2, bias_sd=0.0, noise_sd=0.1))
    apart = score(study, tmp_path, Raters(quality_sd=1.2, bias_sd=0.0, noise_sd=0.1, agreement=0.0))
    for name in DIMENSIONS:
        assert alike["dimensions"][name]["alpha"]["reliable"]
        assert apart["dimensions"][name]["alpha"]["value"] < 0.3
        assert apart["dimensions"][name]["alpha"]["reliable"] is False
        assert alike["dimensions"][name]["icc"]["single"] > 0.8 > apart["dimensions"][name]["icc"]["single"]


def test_steady_raters_repeat_themselves(study: Study, tmp_path: Path) -> None:
    steady = score(study, tmp_path, Raters(noise_sd=0.0))["intra_rater"]["all"]
    shaky = score(study, tmp_path, Raters(noise_sd=1.5))["intra_rater"]["all"]
    assert steady == {"ratings": 5 * 3 * 2 * 4, "same": 1.0, "within_one": 1.0}
    assert shaky["same"] < 0.7


def test_raters_who_know_the_arm_are_found_out(study: Study, tmp_path: Path) -> None:
    blind = score(study, tmp_path, Raters(guessing=1.0, knowing=0.5))["blinding"]["of_guesses"]
    seeing = score(study, tmp_path, Raters(guessing=1.0, knowing=0.9))["blinding"]["of_guesses"]
    assert blind["low"] < 0.5 < seeing["low"]


def test_a_missing_sheet_is_said_and_the_rest_counts(study: Study, tmp_path: Path) -> None:
    report = score(study, tmp_path, Raters(effect=EFFECT), missing=("R4",))  # type: ignore[arg-type]
    assert report["design"]["missing_raters"] == ["R4"]
    assert report["design"]["ratings"] == 4 * 30
    assert report["dimensions"]["logic"]["change"]["low"] > 0
    with pytest.raises(SheetMissing, match="R4"):
        collect(study.run, study.packets, study.key_path, [tmp_path])


def test_the_same_seed_gives_the_same_sheets(study: Study) -> None:
    assert simulate_sheets(study.key, Raters(), 3) == simulate_sheets(study.key, Raters(), 3)
    assert simulate_sheets(study.key, Raters(), 3) != simulate_sheets(study.key, Raters(), 4)
    assert all(sheet.simulated and sheet.locked for sheet in simulate_sheets(study.key, Raters(), 3))


def test_sheets_on_the_disk_say_what_they_are(tmp_path: Path) -> None:
    small = make_study(tmp_path, scenarios=3, raters=2)
    written = write_simulated_sheets(small.key_path, small.sheets, Raters(), seed=1)
    assert [path.name for path in written] == ["simulated-R1.json", "simulated-R2.json"]
    assert collect(small.run, small.packets, small.key_path, [small.sheets]).simulated
    with pytest.raises(SheetError, match="is no key"):
        write_simulated_sheets(small.packets / "R1.json", small.sheets, Raters(), seed=1)
