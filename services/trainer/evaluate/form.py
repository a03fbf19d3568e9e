"""form.html of a packet: one file that a rater opens from a disk, without a network, and that runs its own script alone."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from services.trainer.evaluate.sheets import DIMENSIONS, Packet, content_sha256

_FILES = Path(__file__).parent / "form"
_ESCAPED = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def read_anchors() -> list[dict[str, Any]]:
    """What each score means, by dimension in the form's order: `name`, titles, the question, and words for 1 to 5."""
    anchors: dict[str, dict[str, Any]] = json.loads((_FILES / "anchors.json").read_text(encoding="utf-8"))
    return [{"name": name, **anchors[name]} for name in DIMENSIONS]


def form_html(packet: Packet) -> bytes:
    """The page. No text of the packet can end its element or become markup: it is JSON without `<`, `>` and `&`."""
    style, script = _read("form.css"), _read("form.js")
    data = {
        "packet": packet.model_dump(mode="json"),
        "sha256": content_sha256(packet),
        "dimensions": read_anchors(),
    }
    page = _read("form.html")
    # The packet last: a mark of the template in somebody's text stays text.
    parts = {
        "%CSP%": _policy(style, script),
        "%STYLE%": style,
        "%SCRIPT%": script,
        "%PACKET%": json.dumps(data, ensure_ascii=False).translate(_ESCAPED),
    }
    for mark, text in parts.items():
        page = page.replace(mark, text)
    return page.encode()


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; form-action 'none'; base-uri 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")
