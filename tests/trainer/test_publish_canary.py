"""The canary lets through what still thinks in the right form and says something else than before, and nothing else."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from services.contract.adapter_files import AdapterError
from services.contract.adapter_manifest import config_sha256, read_current, read_manifest
from services.contract.chat_format import ChatFormat, Message
from services.trainer import canary, publish
from services.trainer.canary import QUESTIONS, Format, Replies, compare, judge_format, try_adapter, try_model
from tests.trainer.adapters import DEMO, adapter_tensors, visible_tree, write_adapter, write_run
from tests.trainer.tiny import make_base

CHAT = ChatFormat.load(DEMO, Tokenizer.from_str)
WHOLE = CHAT.write_reply(Message(role="assistant", content="多喝水，注意休息。", reasoning_content="首先看体温。"))
THINK, END_THINK, IM_END, END_OF_TEXT = (
    CHAT.control_ids[token] for token in ("<think>", "</think>", "<|im_end|>", "<|endoftext|>")
)


def text(content: str) -> list[int]:
    return CHAT.encode_text(content)


def cases() -> list[tuple[str, list[int], Format]]:
    end = WHOLE.index(END_THINK)
    long = [i for n in range(60) for i in text(f"{n} 号，")]
    return [
        ("a whole reply", WHOLE, "kept"),
        ("cut in the answer", WHOLE[:-3], "open"),
        ("cut in the thought", WHOLE[: end - 1], "open"),
        ("cut after the thought", WHOLE[: end + 1], "open"),
        ("a long thought, cut", [THINK, *long], "open"),
        ("nothing", [], "broken"),
        ("the end alone", [IM_END], "broken"),
        ("no thought", [*text("多喝水。"), IM_END], "broken"),
        ("an empty thought", [THINK, *text("\n\n"), END_THINK, *text("\n\n多喝水。"), IM_END], "broken"),
        ("an empty answer", [*WHOLE[: end + 1], *text("\n\n"), IM_END], "broken"),
        ("a thought that never closes", [*WHOLE[:end], IM_END], "broken"),
        ("a thought closed twice", [*WHOLE[: end + 1], END_THINK, *WHOLE[end + 1 :]], "broken"),
        ("a thought opened twice", [THINK, *WHOLE], "broken"),
        ("closed by padding", [*WHOLE[:-1], END_OF_TEXT], "broken"),
        ("a turn marker inside", [*WHOLE[:4], CHAT.control_ids["<|im_start|>"], *WHOLE[4:]], "broken"),
        ("a tool call", [*WHOLE[:-1], CHAT.control_ids["<tool_call>"], IM_END], "broken"),
        ("the same word for ever", [THINK, *text("水") * 80], "broken"),
        ("the same sentence for ever", [*WHOLE[: end + 1], *text("多喝水。") * 40], "broken"),
    ]


@pytest.mark.parametrize(("ids", "expected"), [case[1:] for case in cases()], ids=[case[0] for case in cases()])
def test_a_reply_is_judged_by_its_form(ids: list[int], expected: Format) -> None:
    assert judge_format(ids, CHAT) == expected


def replies(logit: float, *ids: list[int]) -> Replies:
    import torch

    return Replies([*ids, *[WHOLE] * (len(QUESTIONS) - len(ids))], torch.full((len(QUESTIONS), 5), logit))


@pytest.mark.torch
def test_a_model_that_moved_and_kept_its_form_gets_through() -> None:
    report = compare(replies(1.0, [IM_END]), replies(1.5, [IM_END]), CHAT)
    assert report.largest_logit_change == 0.5
    assert (report.questions, report.format_before, report.format_after) == (4, 3, 3)
    assert report.as_metrics() == {"canary": vars(report)}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ((1.0, WHOLE), (1.0, WHOLE), "it changes nothing"),
        ((1.0, WHOLE), (1.00001, WHOLE), "it changes nothing"),
        ((1.0, WHOLE), (float("nan"), WHOLE), "makes the model give NaN"),
        ((1.0, WHOLE), (float("inf"), WHOLE), "makes the model give NaN"),
        ((float("nan"), WHOLE), (1.0, WHOLE), "the base model itself gives NaN"),
        ((1.0, WHOLE), (2.0, [IM_END]), "breaks the thinking format on 1 of 4 questions"),
        ((1.0, WHOLE[:-3]), (2.0, [IM_END]), "breaks the thinking format on 1 of 4 questions"),
    ],
)
def test_a_model_that_must_not_be_served_is_refused(
    before: tuple[float, list[int]], after: tuple[float, list[int]], reason: str
) -> None:
    with pytest.raises(AdapterError, match=reason) as refused:
        compare(replies(*before), replies(*after), CHAT)
    assert len(str(refused.value).splitlines()) == 1


# With real models


@pytest.fixture(autouse=True)
def _short_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of random weights never ends its turn by itself, and how a reply begins is enough here."""
    monkeypatch.setattr(canary, "MAX_NEW_TOKENS", 24)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


def adapter_for(base: Path, folder: Path, **options: Any) -> Path:
    sizes = json.loads((base / "config.json").read_text(encoding="utf-8"))
    known = {name: sizes[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim")}
    more = {name: sizes[name] for name in ("num_key_value_heads", "intermediate_size")}
    return write_adapter(folder, adapter_tensors(**known | more | options))


@pytest.mark.torch
def test_an_adapter_that_does_something_is_measured(base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    report = try_adapter(base, adapter_for(base, tmp_path / "a", size=0.05), CHAT, "你是助手。", said.append)
    assert report.largest_logit_change > 0.001
    assert report.format_before == 0, "a model of random weights keeps no form, and must not be blamed for it"
    assert len(said) == 3


@pytest.mark.torch
@pytest.mark.parametrize(
    ("size", "reason"),
    [(0.0, "it changes nothing"), (1e-6, "it changes nothing"), (1e30, "makes the model give NaN")],
)
def test_an_adapter_of_no_use_is_refused(size: float, reason: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=reason):
        try_adapter(base, adapter_for(base, tmp_path / "a", size=size), CHAT, None)


@pytest.mark.torch
def test_what_cannot_be_loaded_is_refused_in_one_line(base: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "nothing", adapter_for(base, tmp_path / "wide", hidden_size=128)):
        with pytest.raises(AdapterError, match="the canary cannot run") as refused:
            try_adapter(base, folder, CHAT, None)
        assert len(str(refused.value).splitlines()) == 1


@pytest.mark.torch
def test_an_adapter_that_ruins_the_demo_models_form_is_not_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command: the canary runs on the staged copy, and its refusal leaves nothing behind."""
    run = write_run(tmp_path / "run")
    write_adapter(run / "adapter", adapter_tensors(size=1.0))
    (tmp_path / "volume").mkdir()
    assert send(run, tmp_path / "volume", DEMO) == 1
    assert "breaks the thinking format on" in capsys.readouterr().err.splitlines()[-1]
    assert visible_tree(tmp_path / "volume") == {}


@pytest.mark.torch
def test_what_the_canary_found_is_in_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "volume").mkdir()
    assert send(write_run(tmp_path / "run"), tmp_path / "volume", DEMO) == 0
    version = read_current(tmp_path / "volume", "kids")
    metrics = read_manifest(tmp_path / "volume" / "kids" / str(version)).metrics
    assert metrics["val_loss"] == 1.5
    assert metrics["canary"]["questions"] == metrics["canary"]["format_before"] == metrics["canary"]["format_after"]
    assert metrics["canary"]["largest_logit_change"] > 0.001
    assert "thinking format on 4 of 4 questions" in capsys.readouterr().err


def send(run: Path, volume: Path, base: Path, *more: str, name: str = "kids") -> int:
    parser = argparse.ArgumentParser()
    publish.add_arguments(parser)
    options = ("--run", str(run), "--name", name, "--volume", str(volume), "--base", str(base), *more)
    return publish.run(parser.parse_args(options))


# Full fine-tunes


@pytest.fixture
def full_run(base: Path, tmp_path: Path) -> Path:
    """A run's folder with a whole model, as `train` leaves it after a full fine-tune."""
    run = tmp_path / "run"
    make_base(run / "model", seed=1)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    record = {"base_config_sha256": config_sha256(config), "chat_format_sha256": CHAT.digest}
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return run


@pytest.mark.torch
def test_a_full_fine_tune_becomes_a_model_directory_that_never_changes(
    base: Path, full_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    volume = tmp_path / "volume"
    volume.mkdir()
    (full_run / "model" / "tokenizer_config.json").unlink()
    assert send(full_run, volume, base, "--full") == 0
    told = capsys.readouterr()
    target = Path(told.out.strip().removeprefix("MEDTHINK_MODEL="))
    assert target.parent == (volume / "models" / "kids").resolve()
    assert "[5/5]" in told.err
    assert (target / "tokenizer_config.json").read_bytes() == (base / "tokenizer_config.json").read_bytes()
    theirs, ours = (AutoModelForCausalLM.from_pretrained(folder) for folder in (full_run / "model", target))
    ids = torch.tensor([CHAT.write_prompt([Message(role="user", content="你好")])])
    assert torch.equal(theirs(ids).logits, ours(ids).logits)
    before = visible_tree(volume)
    assert send(full_run, volume, base, "--full", "--no-canary") == 0
    assert visible_tree(volume) == before


def edit(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        from safetensors.torch import load_file, save_file

        if name.endswith(".json"):
            known = json.loads((model / name).read_text(encoding="utf-8"))
            change(known)
            (model / name).write_text(json.dumps(known), encoding="utf-8")
        else:
            tensors = load_file(model / name)
            change(tensors)
            save_file(tensors, model / name)

    return spoil


def truncate(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


FULL: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "truncated? copy it again"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "has no weights"),
    "a tensor missing": (edit("model.safetensors", lambda t: void(t.popitem())), "is not as in the base model"),
    "a tensor too many": (
        edit("model.safetensors", lambda t: t.update(more=next(iter(t.values())).clone())),
        "is not as in the base model",
    ),
    "NaN": (edit("model.safetensors", lambda t: void(next(iter(t.values())).fill_(float("nan")))), "NaN or infinity"),
    "another shape": (edit("config.json", lambda c: c.update(num_hidden_layers=3)), "is not of"),
    "another tokenizer": (edit("tokenizer.json", lambda c: c.update(normalizer=None)), "has another tokenizer"),
}


def void(_: object) -> None:
    return None


@pytest.mark.torch
@pytest.mark.parametrize("case", FULL)
def test_a_full_fine_tune_that_cannot_be_served_is_refused_and_changes_nothing(
    case: str, base: Path, full_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, reason = FULL[case]
    spoil(full_run / "model")
    (tmp_path / "volume").mkdir()
    assert send(full_run, tmp_path / "volume", base, "--full", "--no-canary") == 1
    refusal = capsys.readouterr().err.splitlines()[-1]
    assert refusal.startswith("publish: ")
    assert reason in refusal
    assert visible_tree(tmp_path / "volume") == {}


@pytest.mark.torch
def test_a_full_fine_tune_that_is_the_base_itself_is_refused(base: Path) -> None:
    with pytest.raises(AdapterError, match="it changes nothing"):
        try_model(base, base, CHAT, None)
