"""A tiny random Qwen3 with the demo's tokenizer, and a prepared data set of a few dialogues, for tests of training."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from services.contract.chat_format import ChatFormat, Message
from services.trainer.config import TrainConfig, make_config
from services.trainer.dataset import CARD, Card, LengthCard, PreparedRow, data_sha256, file_card, write_rows
from services.trainer.rows import load_chat_format
from tests import qwen3

DEMO = qwen3.ROOT / "deploy" / "demo"
SYSTEM = "你是医疗助手。"
QUESTIONS = ("孩子发热怎么办", "感冒了怎么办", "头痛要紧吗", "咳嗽吃什么药", "What helps a cold?", "血压高怎么办")


def make_base(folder: Path, seed: int = 0) -> Path:
    """Writes a model of 2 layers and width 64 in fp32; equal seeds give equal weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    # A model this small gains nothing from more, and threads that wait for each other on a busy machine lose much.
    torch.set_num_threads(1)
    control = load_chat_format(DEMO).control_ids
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=6144,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=control["<|endoftext|>"],
        eos_token_id=control["<|im_end|>"],
        pad_token_id=control["<|endoftext|>"],
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():  # as uneven as a trained model: near-uniform outputs would hide mistakes
        for parameter in model.parameters():
            parameter.mul_(3.0)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(DEMO / name, folder / name)
    return folder


def prepared_row(number: int, group: str, think: str | None) -> PreparedRow:
    question = QUESTIONS[number % len(QUESTIONS)] + "，请说说" * (number % 4)
    answer = f"建议多休息，多喝水，第{number}条。" * (1 + number % 3)
    reply = Message(role="assistant", content=answer, reasoning_content=think)
    messages = (Message(role="user", content=question), reply)
    return PreparedRow(
        id=f"tiny:{number}", group=group, messages=messages, enable_thinking=think is not None, tokens=1, supervised=1
    )


def make_data(folder: Path, rows: int = 24, held_out: int = 4, digest: str | None = None) -> Path:
    """Every fifth row has no reasoning."""
    folder.mkdir(parents=True, exist_ok=True)

    def think(i: int) -> str | None:
        return None if i % 5 == 4 else f"首先看症状{i}，其次看时间。" * (1 + i % 2)

    splits = {
        "train": [prepared_row(i, f"t{i}", think(i)) for i in range(rows)],
        "val": [prepared_row(i, f"v{i}", think(i)) for i in range(held_out)],
    }
    files = {}
    for split, found in splits.items():
        content = write_rows(found)
        (folder / f"{split}.jsonl").write_bytes(content)
        files[split] = file_card(found, content)
    length = LengthCard(least=1, mean=1, p50=1, p90=1, p99=1, most=1)
    card = Card(
        created="2026-01-01T00:00:00+00:00",
        data_sha256=data_sha256(files),
        files=files,
        sources={},
        chat_format_sha256=digest or ChatFormat.load(DEMO, _backend).digest,
        system_prompt=SYSTEM,
        max_length=256,
        seed=0,
        options={},
        formats={},
        extra_columns={},
        dialogues=rows + held_out,
        groups=rows + held_out,
        near_duplicate_groups=0,
        largest_group=1,
        rows_without_thinking=0,
        rows_with_tools=0,
        rows_with_history=0,
        normalised=0,
        dropped={},
        allowed={},
        lengths={"row": length},
    )
    (folder / CARD).write_text(card.model_dump_json(), encoding="utf-8")
    return folder


def tiny_config(base: Path, data: Path, out: Path, **changes: Any) -> TrainConfig:
    """A run of seconds: fp32, packs of 128 tokens, two micro-batches a step."""
    settings: dict[str, Any] = {
        "base": base,
        "data": data,
        "out": out,
        "max_length": 128,
        "batch_tokens": 128,
        "gradient_accumulation": 2,
        "precision": "fp32",
        "learning_rate": 1e-2 if changes.get("method") != "full" else 1e-3,
        "device": "cpu",
        "epochs": 1,
        "rank": 4,
        "seed": 7,
    }
    if changes.get("method") == "full":
        del settings["rank"]
    return make_config(settings | changes)


def digest_of(folder: Path) -> str:
    """One hash over a folder's files, by name."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _backend(text: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)
