"""Training runs of a tiny model, from a prepared data set to what is published; and what is refused, in one line."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from services.contract.adapter_files import read_tensors  # noqa: E402
from services.contract.adapter_fit import check_options, check_tensors  # noqa: E402
from services.contract.adapter_manifest import config_sha256  # noqa: E402
from services.trainer import loop, train  # noqa: E402
from services.trainer.batch import make_batch, row_tensors  # noqa: E402
from services.trainer.callbacks import METRIC, has_converged  # noqa: E402
from services.trainer.dataset import CARD, read_card  # noqa: E402
from services.trainer.errors import TrainError  # noqa: E402
from services.trainer.model import attach, load_base  # noqa: E402
from services.trainer.packing import Schedule  # noqa: E402
from services.trainer.run_record import read_record  # noqa: E402
from services.trainer.saved_weights import read_weights  # noqa: E402
from tests.trainer.tiny import make_base, make_data, tiny_config  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "tiny-qwen3")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def run(base: Path, data: Path, out: Path, **changes: Any) -> Path:
    assert loop.fit(train.prepare_job(tiny_config(base, data, out, **changes), None)) == 0
    return out


@pytest.fixture(scope="module")
def adapter_run(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(base, data, tmp_path_factory.mktemp("adapter-run") / "out", epochs=4)


@pytest.fixture(scope="module")
def full_run(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pure bf16, as a full fine-tune is by default."""
    return run(base, data, tmp_path_factory.mktemp("full") / "out", method="full", precision="bf16", epochs=4)


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# What comes out


@pytest.mark.parametrize("name", ["adapter_run", "full_run"])
def test_held_out_losses_of_thinking_and_answers_fall(name: str, request: pytest.FixtureRequest) -> None:
    found = read_record(request.getfixturevalue(name))["metrics"]
    assert found["eval_answer_loss"] < 0.7 * found["eval_answer_loss_before"]
    assert found["eval_think_loss"] < 0.7 * found["eval_think_loss_before"]


def test_the_adapter_is_one_that_the_engine_serves(adapter_run: Path, base: Path) -> None:
    folder = adapter_run / "adapter"
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    options = json.loads((folder / "adapter_config.json").read_text())
    tensors = read_tensors(folder / "adapter_model.safetensors")
    check_options(options, 16)
    check_tensors(options, tensors, json.loads((base / "config.json").read_text()))
    assert {tensor.dtype for tensor in tensors.values()} == {"BF16"}
    assert options["base_model_name_or_path"] == "tiny-qwen3"
    assert options["inference_mode"] is True
    changed = load_file(folder / "adapter_model.safetensors")
    assert all(tensor.abs().max() > 0 for name, tensor in changed.items() if "lora_B" in name)


def test_a_full_fine_tune_is_a_model_directory_that_serving_accepts(full_run: Path, base: Path) -> None:
    from transformers import Qwen3ForCausalLM

    from services.api.engine.model_files import read_model

    folder = full_run / "model"
    read_model(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert config_sha256(config) == config_sha256(json.loads((base / "config.json").read_text()))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (base / name).read_bytes()
    _, info = Qwen3ForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    assert set(before) == set(after)
    assert all((before[name].bfloat16() != after[name]).any() for name in before)


def test_a_notice_beside_the_base_goes_with_the_model(base: Path, data: Path, tmp_path: Path) -> None:
    notice = tmp_path / "noticed"
    shutil.copytree(base, notice)
    (notice / "medthink.json").write_text('{"demo": "not medicine"}')
    out = run(notice, data, tmp_path / "out", method="full", max_steps=1)
    assert (out / "model" / "medthink.json").read_text() == '{"demo": "not medicine"}'


def test_the_record_says_what_the_run_was_made_of(adapter_run: Path, base: Path, data: Path) -> None:
    record = read_record(adapter_run)
    assert record["status"] == "finished"
    assert record["result"] == "adapter"
    assert record["data_sha256"] == read_card(data).data_sha256
    assert record["chat_format_sha256"] == read_card(data).chat_format_sha256
    assert record["base_config_sha256"] == config_sha256(json.loads((base / "config.json").read_text()))
    assert record["config"]["rank"] == 4
    assert record["system_prompt"] == "你是医疗助手。"
    assert (record["trainable_parameters"], record["parameters"]) == (8192, 475_520)
    assert {"python", "torch", "transformers", "peft"} <= set(record["versions"])
    again = tiny_config(base, data, adapter_run, epochs=4)
    assert (adapter_run / "config.yaml").read_text() == again.as_yaml()


def test_the_best_checkpoint_is_the_one_with_the_least_answer_loss(base: Path, data: Path, tmp_path: Path) -> None:
    """A learning rate that is far too high makes later ones worse."""
    out = run(base, data, tmp_path / "out", epochs=3, learning_rate=0.3, patience=0, eval_every=1, scheduler="constant")
    found = {entry["step"]: entry[METRIC] for entry in metrics(out) if METRIC in entry and entry["step"] > 0}
    best = min(found, key=lambda step: found[step])
    assert found[best] < found[max(found)]
    assert read_record(out)["metrics"]["best_step"] == best
    kept = load_file(out / "checkpoints" / f"checkpoint-{best}" / "adapter_model.safetensors")
    published = load_file(out / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(published[name], kept[name].bfloat16()) for name in kept)


def test_training_ends_when_the_answer_loss_gets_no_better(base: Path, data: Path, tmp_path: Path) -> None:
    out = run(
        base, data, tmp_path / "out", epochs=50, learning_rate=0.3, patience=2, eval_every=1, scheduler="constant"
    )
    losses = [entry[METRIC] for entry in metrics(out) if METRIC in entry][1:]
    assert read_record(out)["status"] == "converged"
    assert losses.index(min(losses)) == len(losses) - 3


def test_patience_counts_evaluations_since_the_best() -> None:
    def history(*losses: float) -> list[dict[str, Any]]:
        return [{"step": 0, METRIC: 0.1}, {"step": 1, "loss": 1.0}] + [
            {"step": i, METRIC: loss} for i, loss in enumerate(losses, 1)
        ]

    assert not has_converged(history(), 2)
    assert not has_converged(history(3, 2, 2.5), 2)
    assert has_converged(history(3, 2, 2.5, 2.2), 2)
    assert has_converged(history(3, 2, 2, 2), 2)
    assert not has_converged(history(3, 2, 2.5, 2.2, 1.9), 2)
    assert not has_converged(history(3, 4, 5, 6), 0)


def test_each_step_is_a_line_of_metrics(adapter_run: Path) -> None:
    steps = [entry for entry in metrics(adapter_run) if "grad_norm" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, len(steps) + 1))
    for entry in steps:
        assert {"loss", "think_loss", "answer_loss", "learning_rate", "tokens_per_s", "epoch", "time"} <= set(entry)
        assert (
            min(entry["think_loss"], entry["answer_loss"])
            <= entry["loss"]
            <= max(entry["think_loss"], entry["answer_loss"])
        )
    assert steps[-1]["epoch"] == 4.0


# What is computed


def test_a_step_does_not_depend_on_how_it_is_cut_into_micro_batches(base: Path, data: Path, tmp_path: Path) -> None:
    """A mean of micro-batches' means would: they hold different numbers of supervised tokens."""
    schedules = {
        "one": {"packing": False, "batch_size": 6, "gradient_accumulation": 1},
        "three": {"packing": False, "batch_size": 2, "gradient_accumulation": 3},
        "packed": {"batch_tokens": 4096, "gradient_accumulation": 1},
    }
    rows = train.prepare_job(tiny_config(base, data, tmp_path / "probe"), None).rows
    order = (3, 9, 14, 0, 7, 22)
    losses, weights = {}, {}
    for name, settings in schedules.items():
        job = train.prepare_job(tiny_config(base, data, tmp_path / name, max_steps=1, **settings), None)
        size = 2 if name == "three" else 6
        packs = tuple(order[i : i + size] for i in range(0, 6, size))
        fixed = Schedule(packs, len(packs), 1, (1,))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "schedule_of", lambda job, fixed=fixed: fixed)
            assert loop.fit(job) == 0
        first = next(entry for entry in metrics(tmp_path / name) if "grad_norm" in entry)
        losses[name] = (first["loss"], first["grad_norm"])
        weights[name] = load_file(tmp_path / name / "checkpoints" / "checkpoint-1" / "adapter_model.safetensors")
    assert len({len(rows[i]) for i in order}) > 2
    for name in ("three", "packed"):
        assert losses[name] == pytest.approx(losses["one"], rel=1e-5)
        for key, tensor in weights[
            "one"
        ].items():  # the first step of Adam moves by the rate, whatever the gradient's size
            torch.testing.assert_close(weights[name][key], tensor, rtol=0, atol=2e-4)


def test_a_weight_of_zero_for_thinking_learns_answers_alone(
    adapter_run: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    out = run(base, data, tmp_path / "out", epochs=4, think_loss_weight=0)
    entries = [entry for entry in metrics(out) if "grad_norm" in entry]
    assert all(entry["loss"] == pytest.approx(entry["answer_loss"]) for entry in entries)
    found = read_record(out)["metrics"]
    assert found["eval_answer_loss"] < 0.7 * found["eval_answer_loss_before"]
    assert found["eval_think_loss"] > read_record(adapter_run)["metrics"]["eval_think_loss"]


def test_held_out_losses_are_those_of_the_saved_weights_without_dropout(base: Path, data: Path, tmp_path: Path) -> None:
    job = train.prepare_job(tiny_config(base, data, tmp_path / "out", epochs=1, dropout=0.5), None)
    assert loop.fit(job) == 0
    last = read_record(tmp_path / "out")["metrics"]["steps"]
    model = attach(load_base(job.config, "cpu"), job.config).eval()
    read_weights(model, tmp_path / "out" / "checkpoints" / f"checkpoint-{last}")
    batch = make_batch([row_tensors(row) for row in job.eval_rows], False, 1.0)
    with torch.no_grad():
        losses = model(**batch)["losses"]
    found = next(entry for entry in reversed(metrics(tmp_path / "out")) if METRIC in entry)
    assert found["eval_answer_loss"] == pytest.approx(losses[batch["is_answer"]].mean().item(), rel=1e-5)
    assert found["eval_think_loss"] == pytest.approx(losses[~batch["is_answer"]].mean().item(), rel=1e-5)


def test_without_held_out_rows_the_last_checkpoint_is_kept(base: Path, tmp_path: Path, capsys: Any) -> None:
    out = run(base, make_data(tmp_path / "data", held_out=0), tmp_path / "out", max_steps=2)
    assert read_record(out)["metrics"] == {"steps": 2, "best_step": 2}
    assert not any(name.startswith("eval") for entry in metrics(out) for name in entry)
    assert "no held-out rows" in capsys.readouterr().err


def test_it_prints_the_true_number_of_trained_parameters(base: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    run(base, data, tmp_path / "out", max_steps=1)
    assert "trainable parameters: 8,192 of 475,520 (1.7227 %)" in capsys.readouterr().err


# What is refused


def call(capsys: Any, *arguments: str) -> str:
    """The one line that the command ends with; its exit code is not 0."""
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    assert train.run(parser.parse_args(arguments)) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train: ")
    return str(line)


def settings(base: Path, data: Path, out: Path, *more: str) -> list[str]:
    plain = ["precision=fp32", "max_length=128", "batch_tokens=128", "device=cpu", "max_steps=1"]
    return [part for one in (f"base={base}", f"data={data}", f"out={out}", *plain, *more) for part in ("--set", one)]


@pytest.mark.parametrize(
    ("setting", "cause"),
    [
        ("base=/nowhere/model", "there is no base model at /nowhere/model"),
        ("preset=huge", "there is no preset 'huge': there are default, seed"),
        ("precision=fp16", "fp16 is refused: Qwen3 was trained in bf16"),
        ("data=/nowhere/data", "make the data set with `prepare` first"),
        ("rnak=4", "no setting 'rnak', did you mean 'rank'"),
        ("report_to=tensorboard", "needs the package tensorboard: install it"),
        ("max_length=40", "longer than max_length 40"),
        ("out=/proc/nothing/here", "cannot write to /proc/nothing/here"),
    ],
)
def test_bad_input_ends_in_one_line_that_names_the_cause(
    setting: str, cause: str, base: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    if setting.startswith("report_to") and train.importlib.util.find_spec("tensorboard"):
        pytest.skip("tensorboard is installed here")
    assert cause in call(capsys, *settings(base, data, tmp_path / "out", setting))
    assert not (tmp_path / "out" / "adapter").exists()


def test_a_device_that_is_not_there_is_refused(base: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert "torch sees no GPU" in call(capsys, *settings(base, data, tmp_path / "out", "device=cuda"))


def test_an_empty_data_set_is_refused(base: Path, tmp_path: Path, capsys: Any) -> None:
    line = call(capsys, *settings(base, make_data(tmp_path / "data", rows=0), tmp_path / "out"))
    assert "has no rows to train on: run `prepare` with more dialogues" in line


def test_a_tokenizer_that_differs_from_the_bases_is_refused(
    base: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    other = tmp_path / "other"
    shutil.copytree(base, other)
    spec = json.loads((other / "tokenizer.json").read_text())
    spec["model"]["merges"] = spec["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(spec))
    line = call(capsys, *settings(other, data, tmp_path / "out"))
    assert "was prepared with another tokenizer than that of" in line


def test_data_that_were_changed_after_their_check_are_refused(base: Path, tmp_path: Path, capsys: Any) -> None:
    data = make_data(tmp_path / "data")
    (data / "train.jsonl").write_bytes((data / "train.jsonl").read_bytes()[:-200])
    assert f"is not the file that {CARD} names" in call(capsys, *settings(base, data, tmp_path / "out"))


def test_a_folder_with_a_run_is_not_written_over(adapter_run: Path, base: Path, data: Path, capsys: Any) -> None:
    assert "holds a run already" in call(capsys, *settings(base, data, adapter_run))


def test_a_run_that_came_to_nothing_can_be_started_again(base: Path, data: Path, tmp_path: Path) -> None:
    job = train.prepare_job(tiny_config(base, data, tmp_path / "out", max_steps=2), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.trainer.supervised.make_batch", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loop.fit(job)
    assert read_record(tmp_path / "out")["status"] == "failed"
    assert read_record(tmp_path / "out")["error"] == "division by zero"
    run(base, data, tmp_path / "out", max_steps=2)
    assert [entry["step"] for entry in metrics(tmp_path / "out") if "grad_norm" in entry] == [1, 2]


def test_a_gpu_without_bf16_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(TrainError, match="Tesla T4 has no bf16: set precision=fp32"):
        loop.check_precision("bf16", "cuda")
    loop.check_precision("fp32", "cuda")
    loop.check_precision("bf16", "cpu")


def test_gradient_checkpointing_changes_nothing(base: Path, data: Path, tmp_path: Path) -> None:
    runs = {
        setting: run(base, data, tmp_path / setting, max_steps=2, gradient_checkpointing=setting)
        for setting in ("on", "off")
    }
    weights = [load_file(out / "adapter" / "adapter_model.safetensors") for out in runs.values()]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=0.02, atol=1e-3)
    assert [read_record(out)["gradient_checkpointing"] for out in runs.values()] == [True, False]


def test_a_full_disk_leaves_nothing_half_published(
    base: Path, data: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any, **_options: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("services.trainer.saved_weights.save_file", full)
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    assert train.run(parser.parse_args(settings(base, data, tmp_path / "out"))) == 1
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert not any((tmp_path / "out").glob("*adapter*"))


def test_a_loss_that_is_no_number_ends_the_run(base: Path, data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    from safetensors.torch import save_file

    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainError, match=r"the loss of step \d is nan: lower learning_rate"):
        loop.fit(train.prepare_job(tiny_config(broken, data, tmp_path / "out", max_steps=1), None))
