"""Where the real Qwen3 tokenizer is found for parity tests: data of the Qwen team (Apache-2.0), not part of this project."""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIP_REASON = (
    "the real Qwen3 tokenizer is not here: point MEDTHINK_TEST_QWEN3_TOKENIZER to a folder with Qwen3-1.7B's "
    "tokenizer.json (or tokenizer.json.xz) and tokenizer_config.json"
)


def tokenizer_folder() -> Path | None:
    named = os.environ.get("MEDTHINK_TEST_QWEN3_TOKENIZER")
    folder = Path(named) if named else ROOT.parent / "shared" / "qwen3-tokenizer"
    return folder if (folder / "tokenizer_config.json").is_file() else None


def unpack(folder: Path, into: Path) -> Path:
    """Writes plain tokenizer.json and tokenizer_config.json into `into` and returns it."""
    packed = folder / "tokenizer.json.xz"
    text = lzma.decompress(packed.read_bytes()) if packed.is_file() else (folder / "tokenizer.json").read_bytes()
    (into / "tokenizer.json").write_bytes(text)
    (into / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes())
    return into


def chat_template(folder: Path) -> str:
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    template: str = config["chat_template"]
    return template
