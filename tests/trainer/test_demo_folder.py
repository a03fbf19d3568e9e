"""`deploy/demo` as it is in the repository."""

from __future__ import annotations

import json

from services.contract.chat_format import CONTROL_TOKENS, ChatFormat
from tests.fakes import DEMO


def test_the_demo_folder_is_small_and_complete() -> None:
    files = {path.name: path.stat().st_size for path in DEMO.iterdir()}
    assert sum(files.values()) <= 20_000_000
    assert set(files) == {
        "README.md", "config.json", "generation_config.json", "measured.json", "medthink.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_the_demo_model_fits_its_tokenizer(chat_format: ChatFormat) -> None:
    config = json.loads((DEMO / "config.json").read_text())
    generation = json.loads((DEMO / "generation_config.json").read_text())
    control = chat_format.control_ids
    assert set(CONTROL_TOKENS) == set(control)
    assert config["vocab_size"] % 64 == 0
    assert config["vocab_size"] > max(control.values())
    assert generation["eos_token_id"] == [control["<|im_end|>"], control["<|endoftext|>"]]
    assert (generation["temperature"], generation["top_p"], generation["top_k"]) == (0.6, 0.95, 20)
    assert config["max_position_embeddings"] == 4096


def test_the_readme_says_what_was_measured() -> None:
    measured = json.loads((DEMO / "measured.json").read_text())
    readme = (DEMO / "README.md").read_text(encoding="utf-8")
    assert "never medicine" in readme
    for result in measured["results"]:
        assert f"| {result['group']} | {result['decoding']} | {result['cases']} |" in readme


def test_the_demo_model_keeps_what_the_build_promises() -> None:
    """On what training never saw, at the temperature that the model is served with."""
    measured = json.loads((DEMO / "measured.json").read_text())
    by_group = {r["group"]: r for r in measured["results"] if r["decoding"] == "T=0.6"}
    paraphrases, unknown = by_group["held-out paraphrases"], by_group["out of scope, held out"]
    assert paraphrases["exact_format"] >= 0.99
    assert paraphrases["right_dialogue"] >= 0.85
    assert paraphrases["says_unknown"] <= 0.08
    assert unknown["says_unknown"] >= 0.85
