"""The demo's tokenizer has Qwen3's parts, and cutting a question into smaller tokens changes no text."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from services.contract.chat_format import ChatFormat, Message
from services.trainer.demo.cut_text import CuttingBackend
from services.trainer.demo.dialogues import Corpus
from services.trainer.demo.tokenizer import NOT_SPECIAL, SPECIAL, save_tokenizer, train_tokenizer
from tests import qwen3
from tests.fakes import DEMO

PLAIN = ChatFormat.load(DEMO, Tokenizer.from_str)
CUTTING = ChatFormat.load(DEMO, lambda text: CuttingBackend(Tokenizer.from_str(text), share=1.0))


@pytest.fixture(scope="module")
def folder(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(corpus.texts(), vocabulary=1024), out)
    return out


def spec(folder: Path) -> dict[str, object]:
    parsed: dict[str, object] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return parsed


def test_the_same_texts_give_the_same_tokenizer(folder: Path, corpus: Corpus, tmp_path: Path) -> None:
    save_tokenizer(train_tokenizer(corpus.texts(), vocabulary=1024), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_added_tokens_stand_at_the_end_in_qwen3s_order(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    assert size == 1024
    ids = [tokenizer.token_to_id(token) for token in (*SPECIAL, *NOT_SPECIAL)]
    assert ids == list(range(size - 26, size))


def test_parts_are_qwen3s(folder: Path, tmp_path: Path) -> None:
    real_folder = qwen3.tokenizer_folder()
    if real_folder is None:
        pytest.skip(qwen3.SKIP_REASON)
    ours, real = spec(folder), spec(qwen3.unpack(real_folder, tmp_path))
    assert ours["normalizer"] == real["normalizer"]
    flags = [{k: v for k, v in token.items() if k != "id"} for token in real["added_tokens"]]  # type: ignore[attr-defined]
    assert [{k: v for k, v in t.items() if k != "id"} for t in ours["added_tokens"]] == flags  # type: ignore[attr-defined]
    assert json.dumps(ours["pre_tokenizer"]["pretokenizers"][0]["pattern"]) == json.dumps(  # type: ignore[index]
        real["pre_tokenizer"]["pretokenizers"][0]["pattern"]  # type: ignore[index]
    )


@given(st.text(max_size=80))
def test_any_text_in_nfc_comes_back(text: str) -> None:
    text = unicodedata.normalize("NFC", text.encode("utf-8", "ignore").decode())
    assert PLAIN.decode_text(PLAIN.encode_text(text)) == text


@given(st.text(st.sampled_from("头痛怎么办 ab.，\n8"), max_size=60), st.integers(0, 50))
def test_a_cut_question_is_the_same_text(question: str, seed: int) -> None:
    assert isinstance(CUTTING.backend, CuttingBackend)
    CUTTING.backend.rng = random.Random(seed)
    ids = CUTTING.write_prompt([Message(role="user", content=question)])
    assert PLAIN.read(ids).messages[0].content == question


def test_cutting_makes_other_tokens_and_depends_on_its_random_state() -> None:
    message = [Message(role="user", content="服用华法林期间能否吃纳豆？")]
    assert isinstance(CUTTING.backend, CuttingBackend)
    made = []
    for seed in (1, 1, 2):
        CUTTING.backend.rng = random.Random(seed)
        made.append(CUTTING.write_prompt(message))
    assert made[0] == made[1] != made[2]
    assert made[0] != PLAIN.write_prompt(message)
