"""Makes the batches of coming epochs in other processes: a GPU trains on an epoch faster than one process makes it."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from services.contract.chat_format import ChatFormat
from services.trainer.demo.batches import Batch, make_batches
from services.trainer.demo.cut_text import CuttingBackend
from services.trainer.demo.dialogues import read_corpus
from services.trainer.demo.recipe import Recipe
from services.trainer.demo.rows import RowMaker
from services.trainer.encode import Row, encode

EpochBatches = Callable[[int], list[Batch]]  # the batches of an epoch, counted from 0


class RowEncoder:
    """Rows and batches of any epoch: the same whenever and wherever they are made."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        """`folder` holds the tokenizer."""
        self.maker = RowMaker(read_corpus(), recipe.seed)
        self.recipe = recipe
        self.whole = ChatFormat.load(folder, lambda text: CuttingBackend(Tokenizer.from_str(text), 0.0))
        self.cutting = ChatFormat.load(folder, lambda text: CuttingBackend(Tokenizer.from_str(text), recipe.split))

    def batches(self, epoch: int) -> list[Batch]:
        return make_batches(self.rows(epoch), self.recipe, random.Random(f"{self.recipe.seed}:{epoch}:batches"))

    def rows(self, epoch: int) -> list[Row]:
        """With tools nothing is cut: there the model learns to copy a name token by token."""
        for chat_format in (self.whole, self.cutting):
            assert isinstance(chat_format.backend, CuttingBackend)
            chat_format.backend.rng = random.Random(f"{self.recipe.seed}:{epoch}")
        examples = self.maker.epoch(epoch)
        return [encode(example, self.whole if example.tools else self.cutting) for example in examples]


@contextmanager
def batches_ahead(folder: Path, recipe: Recipe) -> Iterator[EpochBatches]:
    """A function that gives an epoch's batches, made ahead of time; epochs are asked for in order from 0."""
    workers = max(1, min(14, (os.cpu_count() or 2) - 2))
    context = multiprocessing.get_context("spawn")  # a forked child of a process that uses a GPU may hang
    with ProcessPoolExecutor(workers, context, _start, (folder, recipe)) as pool:
        coming: dict[int, Future[list[Batch]]] = {}

        def batches_of(epoch: int) -> list[Batch]:
            for number in range(epoch, min(epoch + 2 * workers, max(recipe.epochs, 1))):
                if number not in coming:
                    coming[number] = pool.submit(_batches, number)
            return coming.pop(epoch).result()

        yield batches_of


_encoder: RowEncoder | None = None  # of this worker process


def _start(folder: Path, recipe: Recipe) -> None:
    global _encoder
    _encoder = RowEncoder(folder, recipe)


def _batches(epoch: int) -> list[Batch]:
    assert _encoder is not None
    return _encoder.batches(epoch)
