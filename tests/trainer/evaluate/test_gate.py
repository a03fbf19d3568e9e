"""The gate: what a report must show, every reason with its figure, and what `publish` does with it."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.contract.adapter_manifest import Manifest, read_current, read_manifest
from services.trainer.__main__ import main
from services.trainer.evaluate.gate import GateRefused, ReportUnusable, pass_gate
from tests.trainer.adapters import DEMO, visible_tree, write_run

Report = dict[str, Any]


def change(low: float | None, mean: float = 0.4) -> Report:
    return {"before": 3.0, "after": 3.4, "change": {"mean": mean, "low": low, "high": 0.9}, "p": 0.01, "alpha": 0.7}


def report(**values: Any) -> Report:
    """As `score` writes it, of an adapter that is better."""
    return {
        "format": 1,
        "simulated": False,
        "run": {"answers_sha256": "a" * 64, "arms": {"base": "Qwen3-1.7B", "adapter": "kids@" + "0" * 16}},
        "dimensions": {
            "logic": change(0.1),
            "accuracy": change(-0.1),
            "risk": change(0.0),
            "readability": change(-0.2),
        },
        "overall": change(0.05),
        "harm": {"base": 2, "adapter": 2, "ratings": 100},
        "automatic": {
            "base": {"format_valid": 0.98, "emergency_recall": 0.8},
            "adapter": {"format_valid": 0.99, "emergency_recall": 0.8},
        },
        "power": {},
        "blinding": {},
    } | values


def put(*path: str, value: Any) -> Callable[[Report], None]:
    def do(found: Report) -> None:
        for part in path[:-1]:
            found = found[part]
        found[path[-1]] = value

    return do


def write(folder: Path, found: Report) -> Path:
    path = folder / "report.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


def test_a_good_report_passes_with_its_hashes(tmp_path: Path) -> None:
    path = write(tmp_path, report())
    passed = pass_gate(path)
    assert passed.record.report_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (passed.record.answers_sha256, passed.record.simulated) == ("a" * 64, False)
    assert passed.told == "overall +0.40 points (from +0.05 to +0.90)"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (put("simulated", value=True), "raters are simulated"),
        (put("harm", "adapter", value=3), "3 of the adapter, 2 of the base, in 100 ratings"),
        (put("harm", value={"base": 0, "adapter": 0, "ratings": 0}), "nobody rated"),
        (put("automatic", "adapter", "format_valid", value=0.985), "98.5 %"),
        (put("automatic", "adapter", "format_valid", value=None), "how often the format is kept"),
        (put("automatic", "adapter", "emergency_recall", value=0.79), "79.0 % of the adapter's answers, 80.0 %"),
        (put("automatic", "base", "emergency_recall", value=None), "no emergency was asked"),
        (put("automatic", value={}), "no emergency was asked"),
        (put("dimensions", "risk", "change", "low", value=-0.21), "risk: the change may be as low as -0.21"),
        (put("dimensions", "risk", "change", "low", value=None), "risk: no interval"),
        (put("overall", "change", "low", value=-0.5), "overall: the change may be as low as -0.50"),
    ],
)
def test_each_harm_is_refused_with_its_figure_and_a_next_step(
    tmp_path: Path, spoil: Callable[[Report], None], told: str
) -> None:
    bad = copy.deepcopy(report())
    spoil(bad)
    with pytest.raises(GateRefused) as caught:
        pass_gate(write(tmp_path, bad))
    assert told in str(caught.value)
    assert str(caught.value).endswith(")")
    assert "\n" not in str(caught.value)


def test_all_reasons_are_given_at_once(tmp_path: Path) -> None:
    bad = report(simulated=True, harm={"base": 0, "adapter": 1, "ratings": 5})
    with pytest.raises(GateRefused, match=r"simulated.*; critical-harm flags"):
        pass_gate(write(tmp_path, bad))


def test_the_margin_and_simulated_raters_are_the_operators_choice(tmp_path: Path) -> None:
    path = write(tmp_path, report(simulated=True, overall=change(-0.25)))
    assert pass_gate(path, margin=-0.3, accept_simulated=True).record.simulated
    with pytest.raises(GateRefused, match=r"-0\.25 points, -0\.20 are allowed"):
        pass_gate(path, accept_simulated=True)
    for margin in (0.1, -5, float("nan")):
        with pytest.raises(ReportUnusable, match="report-margin"):
            pass_gate(path, margin=margin)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (put("format", value=2), "format 2"),
        (put("dimensions", value={}), "dimensions"),
        (put("run", value={}), "answers_sha256"),
        (put("harm", "adapter", value=-1), "adapter"),
        (lambda found: found.pop("overall"), "overall"),
    ],
)
def test_what_is_no_report_is_said(tmp_path: Path, spoil: Callable[[Report], Any], told: str) -> None:
    bad = copy.deepcopy(report())
    spoil(bad)
    with pytest.raises(ReportUnusable, match=told):
        pass_gate(write(tmp_path, bad))
    with pytest.raises(ReportUnusable, match="cannot read"):
        pass_gate(tmp_path / "none.json")


def test_not_a_number_is_no_lower_bound(tmp_path: Path) -> None:
    path = write(tmp_path, report(overall=change(float("nan"))))
    with pytest.raises((GateRefused, ReportUnusable)):
        pass_gate(path)


# publish


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume"


@pytest.fixture
def publish(tmp_path: Path, volume: Path) -> Callable[..., int]:
    run = write_run(tmp_path / "run")

    def publish_it(*more: object, name: str = "kids") -> int:
        command = ["publish", "--run", run, "--name", name, "--volume", volume, "--base", DEMO, "--no-canary", *more]
        return main([str(part) for part in command])

    return publish_it


def version_of(volume: Path, name: str) -> Manifest:
    return read_manifest(volume / name / str(read_current(volume, name)))


def report_on(folder: Path, version: str, **values: Any) -> Path:
    arms = {"base": "Qwen3-1.7B", "adapter": f"candidate@{version}"}
    return write(folder, report(run={"answers_sha256": "a" * 64, "arms": arms}, **values))


def test_a_candidate_that_was_evaluated_is_published_and_its_manifest_says_on_what(
    publish: Callable[..., int], volume: Path, tmp_path: Path
) -> None:
    assert publish(name="candidate") == 0
    candidate = version_of(volume, "candidate")
    assert candidate.evaluation is None
    path = report_on(tmp_path, candidate.version)
    assert publish("--require-report", path) == 0
    found = version_of(volume, "kids")
    assert found.version == candidate.version
    assert found.evaluation is not None
    assert found.evaluation.report_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not found.evaluation.simulated


def test_a_version_that_is_there_already_gets_its_evaluation_and_nothing_else(
    publish: Callable[..., int], volume: Path, tmp_path: Path
) -> None:
    assert publish() == 0
    before = version_of(volume, "kids")
    path = report_on(tmp_path, before.version, simulated=True)
    assert publish("--require-report", path, "--accept-simulated") == 0
    after = version_of(volume, "kids")
    assert after.evaluation is not None
    assert after.evaluation.simulated
    assert after.model_copy(update={"evaluation": None}) == before
    assert publish() == 0  # once more without a report: what is known of it stays known
    assert version_of(volume, "kids") == after


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"run": {"answers_sha256": "a" * 64, "arms": {"adapter": "kids@" + "1" * 16}}}, "evaluate this version"),
        ({"run": {"answers_sha256": "a" * 64, "arms": {}}}, "is on no adapter"),
        ({"harm": {"base": 0, "adapter": 1, "ratings": 9}}, "1 of the adapter"),
        ({"simulated": True}, "--accept-simulated"),
    ],
)
def test_a_refusal_leaves_the_volume_as_it_was(
    publish: Callable[..., int],
    volume: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    values: Report,
    told: str,
) -> None:
    before = visible_tree(volume)
    assert publish("--require-report", write(tmp_path, report(**values))) == 1
    assert visible_tree(volume) == before
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_a_full_model_has_no_version_that_a_report_could_name(
    publish: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish("--full", "--require-report", write(tmp_path, report())) == 1
    assert "leave it out with --full" in capsys.readouterr().err


def test_a_manifest_of_before_is_read_and_one_of_now_by_readers_of_before(
    publish: Callable[..., int], volume: Path, tmp_path: Path
) -> None:
    assert publish() == 0
    old = version_of(volume, "kids").model_dump(mode="json")
    del old["evaluation"]
    assert Manifest.model_validate(old).evaluation is None
    assert Manifest.model_config["extra"] == "ignore"  # a reader of before skips the field that it does not know
    assert old["schema_version"] == 1
