"""`publish` and `rollback` as commands: what gets through, and one line for everything that does not."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.contract.adapter_manifest import (
    CONFIG,
    CURRENT,
    WEIGHTS,
    config_sha256,
    read_current,
    read_manifest,
    verify,
)
from services.trainer import publish, rollback
from services.trainer.__main__ import main
from tests.trainer.adapters import (
    ALL_LINEAR,
    DEMO,
    ROOT,
    Tensors,
    adapter_config,
    adapter_tensors,
    base_config,
    visible_tree,
    write_adapter,
    write_run,
)


def run_command(module: Any, *arguments: object) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    status: int = module.run(parser.parse_args([str(argument) for argument in arguments]))
    return status


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume"


@pytest.fixture
def send(volume: Path, tmp_path: Path) -> Callable[..., int]:
    """`publish` without its canary, which needs torch; options given replace the usual ones."""

    def publish_it(run: Path, *more: object, name: str = "kids", base: Path = DEMO, to: Path = volume) -> int:
        options = ("--run", run, "--name", name, "--volume", to, "--base", base, "--no-canary", *more)
        return run_command(publish, *options)

    return publish_it


# What gets through


@pytest.mark.parametrize("inside", ["", "adapter"], ids=["the run's folder", "the adapter's folder"])
def test_a_run_is_published_and_current(
    inside: str, send: Callable[..., int], volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", status="finished", base="Qwen3-tiny")
    assert send(run / inside) == 0
    version = read_current(volume, "kids")
    manifest = read_manifest(volume / "kids" / str(version))
    verify(volume / "kids" / str(version), manifest)
    written = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert manifest.base.id == "Qwen3-tiny"
    assert manifest.base.config_sha256 == written["base_config_sha256"]
    assert manifest.base.chat_format_sha256 == written["chat_format_sha256"]
    assert (manifest.data_sha256, manifest.system_prompt) == (written["data_sha256"], written["system_prompt"])
    assert (manifest.metrics, manifest.trainer_version) == ({"val_loss": 1.5}, "test")
    shown = capsys.readouterr()
    assert shown.out == f"kids@{version} is current (rank 8, q_proj v_proj, base Qwen3-tiny)\n"
    assert [line[:5] for line in shown.err.splitlines()] == [f"[{n}/6]" for n in range(1, 7)]


def test_publishing_needs_no_torch(volume: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    program = (
        "import sys, argparse; from pathlib import Path; from services.trainer import publish, rollback; "
        "parser = argparse.ArgumentParser(); publish.add_arguments(parser); "
        "status = publish.run(parser.parse_args(sys.argv[1:])); sys.exit(status or 'torch' in sys.modules)"
    )
    options = ("--run", run, "--name", "kids", "--volume", volume, "--base", DEMO, "--no-canary")
    done = subprocess.run([sys.executable, "-c", program, *map(str, options)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_linear_module_and_half_precision_get_through(
    dtype: type, send: Callable[..., int], volume: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run")
    tensors = {name: values.astype(dtype) for name, values in adapter_tensors(16, ALL_LINEAR).items()}
    write_adapter(run / "adapter", tensors, adapter_config(r=16, target_modules=list(ALL_LINEAR)))
    assert send(run) == 0
    assert read_manifest(volume / "kids" / str(read_current(volume, "kids"))).targets == tuple(sorted(ALL_LINEAR))


def test_a_record_is_read_as_far_as_it_is_understood(send: Callable[..., int], volume: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    written = json.loads((run / "run.json").read_text(encoding="utf-8"))
    inner = {"base_config_sha256": written["base_config_sha256"], "chat_format_sha256": written["chat_format_sha256"]}
    odd = {"schema_version": 9, "inputs": inner, "metrics": [1], "system_prompt": 3, "git": "0a1b2c+", "more": None}
    (run / "run.json").write_text(json.dumps(odd), encoding="utf-8")
    assert send(run) == 0
    manifest = read_manifest(volume / "kids" / str(read_current(volume, "kids")))
    assert (manifest.system_prompt, manifest.data_sha256, manifest.metrics) == (None, None, {})
    assert manifest.trainer_version == "0a1b2c+"


def test_an_adapter_of_unknown_origin_is_published_only_when_somebody_says_so(
    send: Callable[..., int], volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = write_adapter(tmp_path / "apart" / "from" / "runs" / "adapter")
    assert send(foreign) == 1
    assert "say --unrecorded" in capsys.readouterr().err
    assert visible_tree(volume) == {}
    assert send(foreign, "--unrecorded") == 0
    assert read_current(volume, "kids") is not None


def test_a_larger_rank_gets_through_when_the_servers_load_it(
    send: Callable[..., int], volume: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run")
    write_adapter(run / "adapter", adapter_tensors(64), adapter_config(r=64))
    assert send(run) == 1
    assert send(run, "--max-rank", 64) == 0


# What does not


def change_tensors(change: Callable[[Tensors], None], **options: Any) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        tensors = adapter_tensors(**options)
        change(tensors)
        write_adapter(run / "adapter", tensors)

    return spoil


def change_config(**options: Any) -> Callable[[Path], None]:
    return lambda run: void(write_adapter(run / "adapter", config=adapter_config(**options)))


def change_record(**values: Any) -> Callable[[Path], None]:
    return lambda run: void(write_run(run, **values))


def void(_: object) -> None:
    return None


def put(key: str, value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        name = [name for name in tensors if key in name][-1]
        tensors[name].flat[-1] = value

    return change


def nothing_learned(tensors: Tensors) -> None:
    for name in tensors:
        if ".lora_B." in name:
            tensors[name][:] = -0.0


def rename_modules(tensors: Tensors) -> None:
    for name in list(tensors):
        tensors[name.replace("model.model.layers", "transformer.h")] = tensors.pop(name)


def magnitudes(run: Path) -> None:
    tensors = adapter_tensors()
    for name in list(tensors):
        if "lora_A" in name:
            tensors[name.replace("lora_A.weight", "lora_magnitude_vector")] = np.ones(8, np.float32)
    write_adapter(run / "adapter", tensors, adapter_config(use_dora=True))


def truncate(run: Path) -> None:
    path = run / "adapter" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def remove(*names: str) -> Callable[[Path], None]:
    return lambda run: [(run / name).unlink() for name in names] and None


def pickle_instead(run: Path) -> None:
    (run / "adapter" / WEIGHTS).rename(run / "adapter" / "adapter_model.bin")


def garble(name: str, content: bytes = b"{") -> Callable[[Path], None]:
    return lambda run: void((run / name).write_bytes(content))


LAYERS, WIDTH = base_config()["num_hidden_layers"], base_config()["hidden_size"]
SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no adapter": (remove(f"adapter/{CONFIG}", f"adapter/{WEIGHTS}"), "give --run the folder of a finished run"),
    "no weights": (remove(f"adapter/{WEIGHTS}"), f"has no {WEIGHTS}: train again"),
    "a pickle": (pickle_instead, "a pickle, which nobody should load"),
    "truncated weights": (truncate, "truncated? copy it again"),
    "an empty file": (garble(f"adapter/{WEIGHTS}", b""), "no safetensors file"),
    "a header alone": (garble(f"adapter/{WEIGHTS}", b"\xff" * 8), "no safetensors file"),
    "a broken config": (garble(f"adapter/{CONFIG}"), f"{CONFIG} is no JSON"),
    "a broken record": (garble("run.json"), "run.json is no JSON"),
    "no record": (remove("run.json"), "no run.json says which base model"),
    "a run that was stopped": (change_record(status="stopped"), "the run is stopped, not finished: go on with"),
    "a record without the base": (change_record(base_config_sha256=None), "no run.json says which base model"),
    "a record without the format": (change_record(chat_format_sha256=7), "no run.json says which tokenizer"),
    "another base": (change_record(base_config_sha256="0" * 64), "used another base model"),
    "another tokenizer": (change_record(chat_format_sha256="0" * 64), "used another tokenizer or turn format"),
    "NaN in A": (change_tensors(put("lora_A", np.nan)), "holds NaN or infinity"),
    "infinity in B": (change_tensors(put("lora_B", -np.inf)), "holds NaN or infinity"),
    "weights that overflow": (change_tensors(put("lora_B", 1e20)), "holds weights above 100, which no server loads"),
    "a negative one that overflows": (change_tensors(put("lora_A", -101.0)), "holds weights above 100"),
    "nothing learned": (change_tensors(nothing_learned), "every lora_B is zero"),
    "another width": (change_tensors(void, hidden_size=2 * WIDTH), "this base model needs"),
    "a deeper model": (change_tensors(void, num_hidden_layers=2 * LAYERS), "no module of this base model"),
    "a shallower model": (change_tensors(void, num_hidden_layers=LAYERS - 1), "is missing"),
    "renamed modules": (change_tensors(rename_modules), "no tensor of a Qwen3 adapter"),
    "DoRA": (magnitudes, "use_dora"),
    "PiSSA": (change_config(init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
    "too large a rank": (change_config(r=64), "rank 64 is not between 1 and 32"),
    "an output layer": (change_config(modules_to_save=["lm_head"]), "modules_to_save"),
    "not a LoRA": (change_config(peft_type="IA3"), "only LORA"),
    "no scale": (change_config(lora_alpha=None), "lora_alpha"),
    "a scale that overflows": (change_config(lora_alpha=801), "more than 100 times the rank"),
    "a scale of 400 digits": (change_config(lora_alpha=10**400), "lora_alpha"),
}


@pytest.mark.parametrize("case", SPOILED)
@pytest.mark.parametrize("first", [True, False], ids=["first version", "second version"])
def test_what_cannot_be_served_is_refused_in_one_line_and_changes_nothing(
    case: str, first: bool, send: Callable[..., int], volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not first:
        assert send(write_run(tmp_path / "good", seed=1)) == 0
    spoil, reason = SPOILED[case]
    spoil(write_run(tmp_path / "run"))
    before = visible_tree(volume)
    capsys.readouterr()
    assert send(tmp_path / "run") == 1
    shown = capsys.readouterr()
    *steps, refusal = shown.err.splitlines()
    assert refusal.startswith("publish: ")
    assert reason in refusal
    assert all(step.startswith("[") for step in steps)
    assert shown.out == ""
    assert visible_tree(volume) == before
    assert not (volume / ".staging").is_dir() or list((volume / ".staging").iterdir()) == []


def empty(base: Path) -> None:
    shutil.rmtree(base)


def without(name: str) -> Callable[[Path], None]:
    return lambda base: (base / name).unlink()


def rewrite(name: str, **values: Any) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        known = json.loads((base / name).read_text(encoding="utf-8"))
        (base / name).write_text(json.dumps(known | values), encoding="utf-8")

    return change


BASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (empty, "there is no base model in"),
    "no config": (without("config.json"), "there is no base model in"),
    "no tokenizer": (without("tokenizer.json"), "cannot read"),
    "a broken config": (garble("config.json"), "config.json is no JSON"),
    "another kind of model": (rewrite("config.json", model_type="llama"), "holds no Qwen3 model ('llama')"),
    "no layers": (rewrite("config.json", num_hidden_layers=None), "holds no Qwen3 model"),
    "no width": (rewrite("config.json", hidden_size="wide"), "not a Qwen3 model's"),
    "a broken tokenizer": (garble("tokenizer.json"), "cannot read"),
    "a tokenizer without Qwen3's tokens": (rewrite("tokenizer.json", added_tokens=[]), "lacks Qwen3's control tokens"),
    "a tokenizer that is none": (rewrite("tokenizer.json", model={"type": "?"}), "is no tokenizer"),
    "another tokenizer": (rewrite("tokenizer.json", normalizer=None), "used another tokenizer or turn format"),
    "another size": (rewrite("config.json", num_hidden_layers=LAYERS + 1), "used another base model"),
}


@pytest.mark.parametrize("case", BASES)
def test_a_base_that_is_not_the_runs_own_is_named_before_anything_is_copied(
    case: str, send: Callable[..., int], volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, base = write_run(tmp_path / "run"), tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(DEMO / name, base / name)
    spoil, reason = BASES[case]
    spoil(base)
    assert send(run, base=base) == 1
    (refusal,) = capsys.readouterr().err.splitlines()
    assert refusal.startswith("publish: ")
    assert reason in refusal
    assert list(volume.iterdir()) == []


@pytest.mark.parametrize("name", ["Qwen3-1.7B", "qwen3-1.7b", "demo", "models", "../kids", "kids@1", ""])
def test_a_name_that_is_not_free_is_refused(
    name: str, send: Callable[..., int], volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(write_run(tmp_path / "run"), name=name) == 1
    (refusal,) = capsys.readouterr().err.splitlines()
    assert "choose another --name" in refusal or "is no adapter name" in refusal
    assert list(volume.iterdir()) == []


def test_both_commands_are_part_of_the_program(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--name", "kids", "--volume", str(volume)]
    for seed in (1, 2):
        run = write_run(tmp_path / str(seed), seed=seed)
        assert main(["publish", "--run", str(run), "--base", str(DEMO), "--no-canary", *where]) == 0
    first = capsys.readouterr().out.split()[0]
    assert main(["rollback", *where]) == 0
    assert capsys.readouterr().out == f"{first} is current\n"


def test_a_volume_that_is_not_there_is_not_made(
    send: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(write_run(tmp_path / "run"), to=tmp_path / "not" / "mounted") == 1
    assert "mount the volume, or make it" in capsys.readouterr().err
    assert not (tmp_path / "not").exists()


def test_a_run_that_is_not_there_is_named(
    send: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(tmp_path / "nowhere") == 1
    assert "there is no folder" in capsys.readouterr().err


def test_a_volume_that_cannot_be_written_is_named(
    send: Callable[..., int], volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (volume / ".staging").write_text("in the way", encoding="utf-8")
    assert send(write_run(tmp_path / "run")) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"publish: cannot publish to {volume}: ")


# Going back


def test_rollback_goes_back_and_lists_the_versions_when_it_cannot(
    send: Callable[..., int], volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        assert send(write_run(tmp_path / str(seed), seed=seed)) == 0
    first, second = (line.split()[0].split("@")[1] for line in capsys.readouterr().out.splitlines())
    assert run_command(rollback, "--name", "kids", "--volume", volume) == 0
    assert capsys.readouterr().out == f"kids@{first} is current\n"
    assert read_current(volume, "kids") == first
    assert run_command(rollback, "--name", "kids", "--volume", volume) == 1
    assert capsys.readouterr().err == (
        f"rollback: kids has no version before {first}: name one with --version; "
        f"versions, oldest first: {first} (current), {second}\n"
    )
    assert run_command(rollback, "--name", "kids", "--volume", volume, "--version", second) == 0
    assert read_current(volume, "kids") == second


def test_rollback_mends_a_current_that_is_damaged(
    send: Callable[..., int], volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(write_run(tmp_path / "run")) == 0
    version = str(read_current(volume, "kids"))
    (volume / "kids" / CURRENT).chmod(0o644)
    (volume / "kids" / CURRENT).write_bytes(b"\x00\xff")
    capsys.readouterr()
    assert run_command(rollback, "--name", "kids", "--volume", volume) == 1
    assert f"versions, oldest first: {version}\n" in capsys.readouterr().err
    assert run_command(rollback, "--name", "kids", "--volume", volume, "--version", version) == 0
    assert read_current(volume, "kids") == version


@pytest.mark.parametrize(
    ("name", "version", "reason"),
    [
        ("nobody", None, "nobody was never published here; there are no versions of 'nobody'"),
        ("../kids", None, "is no adapter name"),
        ("kids", "0" * 16, "kids has no version '0000000000000000'; versions, oldest first: "),
    ],
)
def test_rollback_says_in_one_line_why_it_cannot(
    name: str,
    version: str | None,
    reason: str,
    send: Callable[..., int],
    volume: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert send(write_run(tmp_path / "run")) == 0
    capsys.readouterr()
    before = visible_tree(volume)
    asked = ("--version", version) if version else ()
    assert run_command(rollback, "--name", name, "--volume", volume, *asked) == 1
    (refusal,) = capsys.readouterr().err.splitlines()
    assert refusal.startswith("rollback: ")
    assert reason in refusal
    assert visible_tree(volume) == before


def test_rollback_on_a_volume_that_is_gone_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(rollback, "--name", "kids", "--volume", tmp_path / "gone") == 1
    assert "give --volume the folder that the servers read" in capsys.readouterr().err


def test_the_hash_of_a_base_is_that_of_its_shape_alone() -> None:
    config = base_config()
    assert config_sha256(config) == config_sha256(config | {"transformers_version": "x", "dtype": "float16"})
    assert config_sha256(config) != config_sha256(config | {"num_hidden_layers": LAYERS + 1})
