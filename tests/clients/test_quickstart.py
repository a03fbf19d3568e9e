"""docs/quickstart.ipynb, run from top to bottom against a real server, in one process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tests.server import ROOT

pytestmark = pytest.mark.clients

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
BASH = "%%bash\n"


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def program() -> str:
    """The code cells as one program: each in order, a %%bash cell by bash, a line before each says which it is."""
    lines = ["import subprocess"]
    for number, cell in enumerate(cells()):
        source = "".join(cell["source"])
        lines.append(f"print('=== cell {number}', flush=True)")
        if source.startswith(BASH):
            lines.append(f"subprocess.run(['bash', '-euc', {source.removeprefix(BASH)!r}], check=True)")
        else:
            lines.append(source)
    return "\n".join(lines)


def test_it_holds_no_outputs() -> None:
    """What a reader sees there, their own server has said."""
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells())


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed on this machine")
def test_it_runs_from_top_to_bottom(url: str) -> None:
    environment = os.environ | {"MEDTHINK_URL": url, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", program()], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    printed = [part.partition("\n")[2] for part in done.stdout.split("=== cell ")[1:]]
    assert len(printed) == len(cells())
    first = printed[1]
    assert first.startswith("<|ReasoningBegin|>")
    assert "<|ReasoningEnd|><|AnswerBegin|>" in first
    assert "射血分数" in printed[2]
    assert printed[3].count("【专业建议】") == 2
    assert "<|" not in printed[3]
    assert "['done', 'done']" in printed[4]
    (stream,) = [part for part in printed if "data: [DONE]" in part]
    assert "reasoning_content" in stream
    assert printed[-1].count("404 model_not_found") == 2
