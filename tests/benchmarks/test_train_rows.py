"""What the trainer's benchmark compares: the same rows for every recipe, and figures that count no padding. Needs no torch."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.train.__main__ import main, run_one, table
from benchmarks.train.modes import MODES, RECIPES, has
from benchmarks.train.rows import LEAST, MOST, make_rows, mixed_lengths
from benchmarks.train.worker import rows_of
from services.trainer.config import make_config
from services.trainer.encode import IGNORED


def test_the_mix_is_the_published_shape() -> None:
    lengths = mixed_lengths(4000)
    assert min(lengths) >= LEAST
    assert max(lengths) <= MOST
    assert 1050 < statistics.mean(lengths) < 1250
    assert lengths[:100] == mixed_lengths(100)
    assert lengths[:100] != mixed_lengths(100, seed=1)


def test_a_short_mix_is_the_same_mix_scaled() -> None:
    assert max(mixed_lengths(500, most=128)) <= 128
    assert min(mixed_lengths(500, most=128)) >= 8


@pytest.mark.parametrize("length", [8, 300, 1170, 2048])
def test_a_row_has_a_prompt_that_is_not_learned_and_an_answer_at_its_end(length: int) -> None:
    row = make_rows([length], 6144)[0]
    assert len(row) == len(row.labels) == length
    assert row.labels[: row.prompt] == [IGNORED] * row.prompt
    assert row.labels[row.prompt :] == row.ids[row.prompt :]
    assert 0 < row.prompt < row.answer < length
    assert 0 < min(row.ids) <= max(row.ids) < 6144


def test_every_recipe_gets_the_same_rows() -> None:
    for mode in MODES:
        rows = rows_of(mode, 8, 128, 6144)
        assert rows == rows_of(mode, 8, 128, 6144)
        assert mode.lengths == "mix" or {len(row) for row in rows} == {128}


def test_the_modes_are_settings_that_the_trainer_takes() -> None:
    for mode in MODES:
        config = make_config(mode.settings() | {"batch_tokens": 8192})
        assert config.packing
        assert (config.method == "full") == (mode.preset is None)
        assert mode.preset is None or config.preset == mode.preset


def test_padding_and_packing_are_compared_where_rows_differ() -> None:
    longest = next(mode for mode in MODES if mode.lengths == "longest")
    mix = next(mode for mode in MODES if mode.lengths == "mix")
    assert [name for name in RECIPES if has(mix, name)] == list(RECIPES)
    assert [name for name in RECIPES if has(longest, name)] == ["plain", "trl", "ours", "ours-eager"]


def result(recipe: str, **figures: Any) -> dict[str, Any]:
    return {"mode": "lora-seed-mix", "recipe": recipe, **figures}


def test_the_table_gives_ratios_to_the_plain_recipe_and_says_what_did_not_run() -> None:
    lines = table(
        [
            result("plain", tokens_per_s=1000.0, peak_bytes=40e9, reserved_bytes=50e9),
            result("trl", error="No module named 'trl'"),
            result("ours", tokens_per_s=3500.0, peak_bytes=5.24e9),
        ]
    ).splitlines()
    assert lines[2] == "| lora-seed-mix | plain | 40.00 | 50.00 | 1,000 | 1.00 |"
    assert lines[3] == "| lora-seed-mix | trl | not run: No module named 'trl' | | | |"
    assert lines[4] == "| lora-seed-mix | ours | 5.24 | - | 3,500 | 3.50 |"


def test_without_the_plain_recipe_there_is_no_ratio() -> None:
    assert table([result("ours", tokens_per_s=1.0, peak_bytes=1e9)]).endswith("| 1.00 | - | 1 | - |")


def job() -> dict[str, Any]:
    return {"mode": "full-mix", "recipe": "ours", "rows": 4}


def test_a_recipe_that_fails_leaves_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], stdout: Any, **_options: Any) -> None:
        stdout.write(b"Traceback\n  ...\nValueError: no such model\n\n")
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", fail)
    found = run_one(job(), tmp_path / "one", 10)
    assert found["error"] == "ValueError: no such model"
    assert found["recipe"] == "ours"


def test_a_recipe_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], timeout: float, **_options: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert run_one(job(), tmp_path / "one", 10)["error"] == "not over after 10 s"


def test_a_recipe_runs_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(command: list[str], **_options: Any) -> None:
        assert command[:3] == [sys.executable, "-m", "benchmarks.train.worker"]
        assert json.loads(Path(command[3]).read_text())["rows"] == 4
        Path(command[4]).write_text('{"tokens_per_s": 7.0}')

    monkeypatch.setattr(subprocess, "run", finish)
    assert run_one(job(), tmp_path / "one", 10)["tokens_per_s"] == 7.0


def test_an_unknown_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--runs", "plain,unsloth"])
    assert "'unsloth' is none of plain" in capsys.readouterr().err
