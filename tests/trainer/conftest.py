"""Fixtures of the trainer's tests: the dialogues, and the demo tokenizer as it is in the repository."""

from __future__ import annotations

import pytest

from services.trainer.demo.dialogues import Corpus, read_corpus
from services.trainer.demo.rows import RowMaker


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return read_corpus()


@pytest.fixture(scope="session")
def maker(corpus: Corpus) -> RowMaker:
    return RowMaker(corpus, seed=7)
