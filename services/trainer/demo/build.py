"""The demo model from its dialogues to `deploy/demo`: tokenizer, rows, model, training, measurement, README."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from services.contract.chat_format import ChatFormat, Message
from services.trainer.demo.batches import make_batches
from services.trainer.demo.dialogues import Corpus, read_corpus
from services.trainer.demo.epochs import batches_ahead
from services.trainer.demo.gradients import on_device, weighted_loss
from services.trainer.demo.judge import GroupResult, table
from services.trainer.demo.measure import measure
from services.trainer.demo.model import load_model, new_model, save_model
from services.trainer.demo.recipe import Recipe
from services.trainer.demo.report import Measured, Training, write_readme
from services.trainer.demo.rows import RowMaker
from services.trainer.demo.tokenizer import chat_template, save_tokenizer, train_tokenizer
from services.trainer.demo.train import pick_device, train
from services.trainer.encode import Example, Row, encode

MEASURED = "measured.json"
# The service reads this file and says the notice in its log, in /v1/models and on its page.
NOTICE_FILE = "medthink.json"
NOTICE = "a tiny model that knows a few dozen everyday topics by heart; it shows the machinery and is no medicine"


def build_demo(out: Path, recipe: Recipe, device_name: str, measured: bool = True) -> Measured:
    """Makes the model directory `out`; what stood there is replaced only after everything has succeeded.

    Raises `DialogueError` when the dialogues are not fit to train on.
    """
    device = pick_device(device_name)
    corpus = read_corpus()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work:
        folder = Path(work)
        maker = RowMaker(corpus, recipe.seed)
        # The template holds the words around tool signatures; often, so that they become few tokens.
        tokenizer = train_tokenizer([*corpus.texts(), *maker.texts(), *[chat_template()] * 20])
        save_tokenizer(tokenizer, folder)
        model, training = _train(folder, corpus, maker, recipe, device)
        save_model(model, folder)
        (folder / NOTICE_FILE).write_text(json.dumps({"demo": NOTICE}, indent=2) + "\n", encoding="utf-8")
        report = Measured(training=training)
        if measured:
            report.results = measure_demo(folder, corpus, device)
            (folder / MEASURED).write_text(report.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(write_readme(report), encoding="utf-8")
        out.mkdir(exist_ok=True)
        for path in sorted(folder.iterdir()):
            os.replace(path, out / path.name)
    return report


def measure_demo(folder: Path, corpus: Corpus, device: str) -> list[GroupResult]:
    """Measures the model directory as it is on disk, in bfloat16."""
    chat_format = ChatFormat.load(folder, Tokenizer.from_str)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    started = time.monotonic()
    results = measure(load_model(folder), corpus, chat_format, tokenizer, device)
    print(f"measured in {time.monotonic() - started:.0f} s\n\n{table(results)}", file=sys.stderr)
    return results


def _train(folder: Path, corpus: Corpus, maker: RowMaker, recipe: Recipe, device: str) -> tuple[Any, Training]:
    clean = ChatFormat.load(folder, Tokenizer.from_str)
    model = new_model(recipe, clean.control_ids, Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size())
    parameters, rows = sum(p.numel() for p in model.parameters()), len(maker.epoch(0))
    print(
        f"training {parameters:,} parameters on {rows} rows an epoch, {recipe.epochs} epochs, {device}", file=sys.stderr
    )
    unseen = _unseen_rows(corpus, clean)
    started = time.monotonic()
    with batches_ahead(folder, recipe) as batches_of:
        loss = train(model, batches_of, recipe, device, lambda: _unseen_loss(model, unseen, recipe, device))
    return model, Training(
        recipe=asdict(recipe),
        dialogues=len(corpus.dialogues),
        chinese=sum(d.lang == "zh" for d in corpus.dialogues),
        out_of_scope=len(corpus.out_of_scope),
        rows_an_epoch=rows,
        parameters=parameters,
        vocabulary=model.config.vocab_size,
        loss=loss,
        device=torch.cuda.get_device_name() if device == "cuda" else "CPU",
        training_s=round(time.monotonic() - started, 1),
    )


def _unseen_rows(corpus: Corpus, chat_format: ChatFormat) -> list[Row]:
    """The held-out paraphrases with their replies, to watch the loss; nothing is learned from them."""
    rows = []
    for dialogue in corpus.dialogues:
        reply = Message(role="assistant", content=dialogue.answer, reasoning_content=dialogue.think)
        rows.append(encode(Example((Message(role="user", content=dialogue.held_out[0]), reply)), chat_format))
    return rows


def _unseen_loss(model: Any, rows: list[Row], recipe: Recipe, device: str) -> str:
    model.eval()
    with torch.no_grad():
        batches = make_batches(rows, recipe, random.Random(0))
        losses = [weighted_loss(model, *on_device(batch, device)).item() for batch in batches]
        mean = sum(losses) / len(losses)
    return f"on held-out paraphrases {mean:.4f}"
