"""A tokenizer for `ChatFormat` that cuts some questions into smaller tokens: the model meets a word in many spellings.

The same idea as BPE dropout, which the tokenizers library has too, but its random state cannot be seeded.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer


@dataclass(frozen=True)
class Ids:
    ids: list[int]


class CuttingBackend:
    """Encodes like `tokenizer`, but cuts user turns at random places first; remembers all other texts' ids."""

    def __init__(self, tokenizer: Tokenizer, share: float) -> None:
        """`share` of the user turns are cut, each at every seventh character or so; by `rng`, which may be replaced."""
        self.tokenizer = tokenizer
        self.share = share
        self.rng = random.Random(0)
        self._known: dict[str, Ids] = {}

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Ids:
        if sequence.startswith("user\n") and self.rng.random() < self.share:
            return Ids([i for piece in self._cut(sequence) for i in self._encode(piece)])
        if sequence not in self._known:
            if len(self._known) > 50_000:
                self._known.clear()
            self._known[sequence] = Ids(self._encode(sequence))
        return self._known[sequence]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _cut(self, text: str) -> list[str]:
        """Pieces of `text`; the role line before the question stays whole."""
        start = len("user\n") + 1
        cuts = [i for i in range(start, len(text)) if self.rng.random() < 0.15]
        return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
