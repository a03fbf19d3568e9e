"""`plan`: what a run takes, whether it fits, and what to change."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from services.contract.adapter_manifest import config_sha256
from services.trainer import device_memory
from services.trainer.config import TrainConfig, make_config
from services.trainer.device_memory import Budget, DeviceError, find_budget
from services.trainer.memory import GB
from services.trainer.plan import Plan, add_arguments, plan, run
from services.trainer.plan_advice import advise
from tests.trainer.tiny import make_data
from tests.trainer.true_shape import QWEN3_1_7B


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory with nothing but config.json: a plan needs no weights."""
    folder = tmp_path / "Qwen3-1.7B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN3_1_7B), encoding="utf-8")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data", rows=40)


def _gpu(gb: float) -> Budget:
    return Budget("cuda", "a GPU", int(gb * GB), int(gb * GB))


def _plan(base: Path, gb: float, **settings: Any) -> Plan:
    return plan(make_config({"base": base, **settings}), budget=_gpu(gb), devices=1, with_data=False)


def _run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(argument) for argument in arguments]))


def test_it_says_the_true_parameter_counts(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--set", "preset=seed", "--set", f"base={base}", "--no-data", "--memory-gb", 24) == 0
    assert "trainable parameters: 1,605,632 of 1,722,180,608 (0.0932 %)" in capsys.readouterr().out


def test_checkpointing_is_on_only_when_the_run_does_not_fit_without(base: Path) -> None:
    assert not _plan(base, 80).gradient_checkpointing
    assert _plan(base, 24).gradient_checkpointing
    assert _plan(base, 24).fits
    assert _plan(base, 80, gradient_checkpointing="on").gradient_checkpointing
    assert not _plan(base, 24, gradient_checkpointing="off").fits


def test_a_run_that_cannot_fit_exits_with_1_and_says_what_to_change(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--set", "method=full", "--set", f"base={base}", "--no-data", "--memory-gb", 12)
    assert _run(*arguments) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("does not fit: needs ")
    assert "--set method=lora" in last


@pytest.mark.parametrize(
    ("gb", "settings", "expected"),
    [
        (6.3, {}, {"batch_tokens": 4096, "gradient_accumulation": 8}),
        (6.6, {"gradient_checkpointing": "off", "batch_tokens": 2048}, {"gradient_checkpointing": "auto"}),
        (24, {"method": "full", "trained_weights": "fp32"}, {"trained_weights": "bf16", "precision": "bf16"}),
        (17, {"method": "full"}, {"batch_tokens": 2048, "gradient_accumulation": 1}),
        (7.5, {"packing": False, "batch_size": 8}, {"batch_size": 4, "gradient_accumulation": 8}),
    ],
)
def test_the_cheapest_change_that_helps_is_named(
    gb: float, settings: dict[str, Any], expected: dict[str, Any], base: Path
) -> None:
    made = _plan(base, gb, **settings)
    assert not made.fits
    assert made.remedy is not None
    assert made.remedy.settings == expected
    assert made.remedy.fits
    assert _plan(base, gb, **(settings | expected)).fits


def test_a_change_that_turns_out_not_to_be_needed_is_left_out() -> None:
    config = make_config({"gradient_checkpointing": "off"})

    def peak_of(config: TrainConfig) -> int:
        return 5 if config.gradient_checkpointing == "auto" else 10

    advice = advise(config, 2048, peak_of, limit=6)
    assert [change.settings for change in advice.changes] == [{"gradient_checkpointing": "auto"}]


def test_where_nothing_helps_it_says_how_far_it_gets(base: Path) -> None:
    made = _plan(base, 2)
    assert made.remedy is not None
    assert not made.remedy.fits
    assert made.remedy.peak < made.needed
    assert "train a smaller base" in made.advice


def test_steps_and_tokens_are_those_of_the_schedule(base: Path, data: Path) -> None:
    config = make_config(
        {"base": base, "data": data, "batch_tokens": 16, "max_length": 16, "gradient_accumulation": 2, "epochs": 3}
    )
    work = plan(config, budget=_gpu(80), devices=1).work
    assert work is not None
    assert (work.rows, work.epoch_tokens, work.tokens, work.steps) == (40, 40, 120, 6)
    two = plan(config, budget=_gpu(80), devices=2).work
    assert two is not None
    assert two.steps == 3


def test_a_pack_is_no_larger_than_the_data(base: Path, data: Path) -> None:
    made = plan(make_config({"base": base, "data": data}), budget=_gpu(80), devices=1)
    assert made.micro_batch_tokens == 40


def test_time_is_unknown_unless_it_was_measured(base: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--set", f"base={base}", "--set", f"data={data}", "--memory-gb", 80)
    assert _run(*arguments) == 0
    assert "time: unknown" in capsys.readouterr().out
    assert _run(*arguments, "--tokens-per-second", 4) == 0
    assert "time: about 30 s at 4 tokens/s (given)" in capsys.readouterr().out


def _earlier_run(folder: Path, of: TrainConfig, **changes: Any) -> None:
    folder.mkdir(parents=True)
    record = {
        "config": of.as_dict(),
        "base_config_sha256": config_sha256(QWEN3_1_7B),
        "device": "a GPU",
        "processes": 1,
        "gradient_checkpointing": False,
        "began": 1.0,
    }
    (folder / "run.json").write_text(json.dumps(record | changes), encoding="utf-8")
    speeds = "\n".join(json.dumps({"step": n, "tokens_per_s": speed}) for n, speed in enumerate((1, 1, 30, 10, 20), 1))
    (folder / "metrics.jsonl").write_text(speeds, encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, True),
        ({"device": "another GPU"}, False),
        ({"processes": 2}, False),
        ({"gradient_checkpointing": True}, False),
        ({"base_config_sha256": "0"}, False),
        ({"config": {}}, False),
    ],
)
def test_the_speed_of_an_earlier_run_counts_only_when_it_was_alike(
    changes: dict[str, Any], known: bool, base: Path, data: Path, tmp_path: Path
) -> None:
    config = make_config({"base": base, "data": data, "out": tmp_path / "runs" / "new"})
    _earlier_run(tmp_path / "runs" / "old", config, **changes)
    made = plan(config, budget=_gpu(80), devices=1)
    assert (made.rate.tokens_per_s if made.rate else None) == (20 if known else None)
    assert made.seconds == (120 / 20 if known else None)


def test_json_has_every_number_of_the_page(base: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--set", f"base={base}", "--set", f"data={data}", "--memory-gb", 80, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    memory = found["memory"]
    parts = ("weights", "gradients", "optimizer", "activations", "loss", "transient", "margin")
    assert memory["needed"] == sum(memory[part] for part in parts)
    assert found["fits"] is True
    assert found["work"]["rows"] == 40
    assert found["tokens_per_s"] is None
    assert make_config(found["config"]).base == base


def test_a_disk_that_is_too_small_is_said(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--set", "method=full", "--set", f"base={base}", "--no-data", "--memory-gb", 80)
    monkeypatch.setattr("services.trainer.plan._disk_free", lambda _: int(5 * GB))
    assert _run(*arguments) == 0
    assert "free some, or set out to another disk" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot plan for the base model"),
        ("{", "cannot plan for the base model"),
        (json.dumps({"model_type": "llama"}), "only qwen3 is trained here"),
        (json.dumps({"model_type": "qwen3", "hidden_size": 8}), "lacks a size"),
        (json.dumps(QWEN3_1_7B | {"vocab_size": "many"}), "lacks a size"),
    ],
)
def test_a_base_without_a_usable_config_is_one_line(
    content: str | None, said: str, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is None:
        (base / "config.json").unlink()
    else:
        (base / "config.json").write_text(content, encoding="utf-8")
    assert _run("--set", f"base={base}", "--no-data", "--memory-gb", 80) == 2
    error = capsys.readouterr().err
    assert error.startswith("plan: ")
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "preset=x"], "there is no preset 'x'"),
        (["--set", "data=nowhere"], "make the data set with `prepare` first"),
        (["--memory-gb", "0"], "--memory-gb must be above 0"),
        (["--devices", "0"], "--devices must be 1 or more"),
        (["--tokens-per-second", "-1"], "--tokens-per-second must be above 0"),
        (["--set", "batch_tokens=64", "--set", "max_length=64", "--set", "max_length=65"], "cannot hold a row"),
    ],
)
def test_a_wrong_call_is_one_line(
    arguments: list[str], said: str, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = [] if "--memory-gb" in arguments else ["--memory-gb", "80"]
    assert _run("--set", f"base={base}", *memory, *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_rows_longer_than_max_length_are_named_before_training(base: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path / "long", rows=4)
    path, card = data / "train.jsonl", data / "card.json"
    _lengthen(path, card)
    config = make_config({"base": base, "data": data, "max_length": 64})
    with pytest.raises(ValueError, match="4 rows are longer than max_length 64, the longest has 100 tokens"):
        plan(config, budget=_gpu(80), devices=1)


def _lengthen(path: Path, card: Path) -> None:
    """Says 100 tokens for every row, in the file and in its card."""
    from services.trainer.dataset import PreparedRow, data_sha256, file_card, read_card, write_rows

    lines = path.read_bytes().splitlines()
    rows = [PreparedRow.model_validate_json(line).model_copy(update={"tokens": 100}) for line in lines]
    content = write_rows(rows)
    path.write_bytes(content)
    known = read_card(card.parent)
    files = known.files | {"train": file_card(rows, content)}
    changed = known.model_copy(update={"files": files, "data_sha256": data_sha256(files)})
    card.write_text(changed.model_dump_json(), encoding="utf-8")


def test_the_memory_of_a_container_is_its_limit_and_not_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_memory, "_CGROUP", tmp_path)
    whole = find_budget("cpu")
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert find_budget("cpu").total == whole.total
    (tmp_path / "memory.max").write_text("1000000\n", encoding="ascii")
    (tmp_path / "memory.current").write_text("400000\n", encoding="ascii")
    limited = find_budget("cpu")
    assert (limited.total, limited.free) == (1_000_000, 600_000)


def test_what_others_hold_is_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:  12345 kB\n", encoding="ascii")
    monkeypatch.setattr(device_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(device_memory, "_CGROUP", tmp_path)
    assert find_budget("cpu").free == 12345 * 1024


def test_a_size_in_gb_means_a_gpu_unless_the_device_is_the_cpu() -> None:
    assert find_budget("auto", 24).kind == "cuda"
    assert find_budget("cpu", 24).kind == "cpu"
    with pytest.raises(DeviceError):
        find_budget("cpu", -1)
