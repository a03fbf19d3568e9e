"""Text of single token ids, for byte-level BPE: a token is bytes, a character may need several tokens."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping


def byte_alphabet() -> dict[str, int]:
    """Character to byte of byte-level BPE: printable Latin-1 stands for itself, the rest is moved to U+0100 and on.

    The mapping of GPT-2's tokenizer, which Qwen's shares.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(moved)}


class TokenTexts:
    """Bytes of ids, looked up once each. Control tokens have none."""

    def __init__(self, id_to_token: Callable[[int], str | None], control_ids: Mapping[str, int]) -> None:
        self._id_to_token = id_to_token
        self._alphabet = byte_alphabet()
        self._names = {i: name for name, i in control_ids.items()}
        self._known: dict[int, bytes] = dict.fromkeys(self._names, b"")

    def raw(self, token_id: int) -> bytes:
        """Bytes of one id; empty for a control token and for an id that the vocabulary lacks."""
        found = self._known.get(token_id)
        if found is None:
            token = self._id_to_token(token_id) or ""
            alphabet = self._alphabet
            found = bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()
            self._known[token_id] = found
        return found

    def shown(self, token_id: int) -> str:
        """One id as text for a log-probability list; a control token by its name."""
        name = self._names.get(token_id)
        return name if name is not None else self.raw(token_id).decode("utf-8", "replace")

    def detokenizer(self) -> Utf8Detokenizer:
        return Utf8Detokenizer(self)


class Utf8Detokenizer:
    """Text of ids in order; a character appears with the token that completes it."""

    __slots__ = ("_decode", "_raw")

    def __init__(self, texts: TokenTexts) -> None:
        self._raw = texts.raw
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def step(self, token_id: int) -> str:
        return self._decode(self._raw(token_id))
