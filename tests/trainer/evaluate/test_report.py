"""The report in its three forms: what the gate reads, what people read, and that nobody takes made-up raters for real."""

from __future__ import annotations

import argparse
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from services.trainer import score
from services.trainer.evaluate.gate import GateRefused, pass_gate
from services.trainer.evaluate.report import JudgeUnreadable
from services.trainer.evaluate.sheets import DIMENSIONS, Dimension
from services.trainer.evaluate.simulate import Raters, make_sheet, simulate_sheets
from tests.trainer.evaluate.study import Study, make_study

NO_HARM = {"base": 0.0, "adapter": 0.0}
BETTER: dict[Dimension, float] = dict.fromkeys(DIMENSIONS, 0.7)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study(tmp_path, scenarios=12, raters=4)


def do_score(study: Study, raters: Raters, *, simulated: bool = True, extra: tuple[str, ...] = ()) -> Path:
    """The report's folder."""
    for sheet in simulate_sheets(study.key, raters, seed=5):
        study.write(make_sheet(study.key, sheet.rater, sheet.ratings, simulated=simulated))
    parser = argparse.ArgumentParser()
    score.add_arguments(parser)
    out = study.run.parent / "report"
    given = ["--run", study.run, "--packets", study.packets, "--key", study.key_path, "--sheets", study.sheets]
    assert score.run(parser.parse_args([*map(str, given), "--out", str(out), *extra])) == 0
    return out


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return found


def test_the_gate_lets_a_better_adapter_through(study: Study) -> None:
    out = do_score(study, Raters(effect=BETTER, harm=NO_HARM), simulated=False)
    passed = pass_gate(out / "report.json")
    assert passed.adapter == "kids@0123456789abcdef"
    assert passed.record.answers_sha256 == study.key.answers_sha256
    assert not passed.record.simulated


def test_the_gate_refuses_simulated_raters_and_every_loss(study: Study) -> None:
    worse: dict[Dimension, float] = dict.fromkeys(DIMENSIONS, -0.7)
    out = do_score(study, Raters(effect=worse, harm={"base": 0.0, "adapter": 0.3}))
    with pytest.raises(GateRefused) as refused:
        pass_gate(out / "report.json")
    told = str(refused.value)
    for part in ("simulated", "critical-harm flags", *DIMENSIONS, "overall"):
        assert part in told


def test_the_gate_refuses_one_rater_and_few_scenarios(tmp_path: Path) -> None:
    for scenarios, raters in ((5, 4), (12, 1)):
        small = make_study(tmp_path / f"{scenarios}-{raters}", scenarios, raters)
        out = do_score(small, Raters(effect=BETTER, harm=NO_HARM), simulated=False)
        with pytest.raises(GateRefused, match="no interval"):
            pass_gate(out / "report.json")


def test_before_and_after_differ_by_the_change(study: Study) -> None:
    report = read(do_score(study, Raters(effect=BETTER)))
    for part in [*report["dimensions"].values(), report["overall"]]:
        assert part["after"] - part["before"] == pytest.approx(part["change"]["mean"])
        assert sum(part["scenarios"].values()) == 12
    means = [report["dimensions"][name]["change"]["mean"] for name in DIMENSIONS]
    assert report["overall"]["change"]["mean"] == pytest.approx(sum(means) / 4)


def test_harm_is_counted_among_ratings_and_listed(study: Study) -> None:
    report = read(do_score(study, Raters(harm={"base": 0.0, "adapter": 0.5})))
    flagged = sum(len(case["raters"]) for case in report["harm_cases"])
    assert report["harm"] == {"base": 0, "adapter": flagged, "ratings": 48}
    assert flagged > 0
    assert {case["arm"] for case in report["harm_cases"]} == {"adapter"}


@pytest.mark.parametrize("simulated", [True, False])
def test_only_made_up_raters_are_called_so(study: Study, simulated: bool, capsys: pytest.CaptureFixture[str]) -> None:
    out = do_score(study, Raters(), simulated=simulated)
    assert read(out)["simulated"] is simulated
    shown = [(out / "report.html").read_text(), (out / "report.md").read_text(), capsys.readouterr().out]
    assert all(("SIMULATED" in text) is simulated for text in shown)


class Tags(HTMLParser):
    """Which elements there are, and every address they name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.addresses += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_the_page_runs_nothing_and_fetches_nothing(study: Study) -> None:
    """Every answer of the study holds a script, every question a tag."""
    text = (do_score(study, Raters(harm={"base": 0.5, "adapter": 0.5})) / "report.html").read_text()
    page = Tags()
    page.feed(text)
    assert "script" not in page.seen
    assert "b" not in page.seen
    assert page.addresses == []
    assert page.open in ([], ["circle"]) or set(page.open) <= {"line", "circle"}
    assert "&lt;script&gt;alert" in text


def test_what_is_missing_stands_in_every_form(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    do_score(study, Raters())
    (study.sheets / "R4.json").unlink()
    capsys.readouterr()
    parser = argparse.ArgumentParser()
    score.add_arguments(parser)
    out = study.run.parent / "again"
    given = ["--run", study.run, "--packets", study.packets, "--key", study.key_path, "--sheets", study.sheets]
    score.run(parser.parse_args([*map(str, given), "--out", str(out), "--allow-missing", "R4"]))
    for text in (capsys.readouterr().out, (out / "report.md").read_text(), (out / "report.html").read_text()):
        assert "missing sheets" in text
        assert "R4" in text


def test_a_judge_is_compared_with_the_raters(study: Study) -> None:
    better = Raters(effect=dict.fromkeys(DIMENSIONS, 3.0), base=2.0, quality_sd=0.1, bias_sd=0.0, noise_sd=0.1)
    rows = []
    answers = [json.loads(line) for line in (study.run / "answers.jsonl").read_text().splitlines()]
    for base, adapter in zip(answers[::2], answers[1::2], strict=True):
        for first, second in ((base, adapter), (adapter, base)):
            rows.append(
                {
                    "scenario": base["scenario"],
                    "seed": 0,
                    "first": first["id"],
                    "second": second["id"],
                    "winner": "adapter" if base["scenario"] != "t00" else "base",
                    "unclear": False,
                    "judge": "j",
                }
            )
    path = study.run / "judge.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = read(do_score(study, better))["judge"]
    assert (judged["compared"], judged["same_as_raters"], judged["judge"]) == (12, 11, "j")
    path.write_text(path.read_text().replace(answers[0]["id"], "f" * 16))
    with pytest.raises(JudgeUnreadable):
        do_score(study, better)


def test_there_is_no_option_that_makes_raters_up() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    score.add_arguments(parser)
    assert "simul" not in parser.format_help()
