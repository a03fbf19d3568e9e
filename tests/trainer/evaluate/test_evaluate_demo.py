"""`evaluate-demo` from the answers to the report, against a fake API, and what its questions are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.trainer.__main__ import main
from services.trainer.evaluate.answers import read_run
from services.trainer.evaluate.scenario import SCENARIOS, read_scenarios
from services.trainer.evaluate_demo import DEMO_SCENARIOS, ROOT
from tests.trainer.evaluate.fake_api import FakeApi


def test_the_demo_asks_what_the_demo_model_was_taught() -> None:
    taught = {
        json.loads(line)["question"]
        for folder in ("examples", "demo/dialogues")
        for file in (ROOT / "services/trainer" / folder).glob("*.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
    }
    asked = read_scenarios(DEMO_SCENARIOS)
    assert {s.question for s in asked} <= taught
    assert sum(s.urgent is not None for s in asked) >= 3
    assert not {s.id for s in asked} & {s.id for s in read_scenarios(SCENARIOS)}


def test_the_demo_answers_and_says_that_it_is_one(
    api: FakeApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate-demo", "--url", api.url, "--adapter", "kids", "--out", str(tmp_path), "--seeds", "1"]
    assert main(arguments) == 0
    (folder,) = tmp_path.iterdir()
    assert len(read_run(folder).answers) == len(api.asked) == 24
    told = capsys.readouterr().out
    assert "Nothing here is about medicine" in told
    assert "SIMULATED; no number below is evidence" in told
    report = json.loads((folder / "report" / "report.json").read_bytes())
    assert report["simulated"] is True
    assert len(report["design"]["raters"]) == 3
    assert (folder / "packets" / "r1" / "form.html").exists()
    assert main(arguments) == 0  # again, into a folder of its own
    assert len(list(tmp_path.iterdir())) == 2


def test_a_demo_without_its_adapter_says_what_to_do(
    api: FakeApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate-demo", "--url", api.url, "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "Publish it first" in told
    assert "`make train-demo`" in told
