"""How texts are cleaned before anything looks at them."""

from __future__ import annotations

import unicodedata


def normalise(text: str) -> str:
    r"""NFC (what Qwen3's tokenizer makes of it anyway), `\n` for line ends, no blanks around."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def comparable(text: str) -> str:
    """Letters, digits and ideographs alone, in one width and case: what two questions are compared by."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
