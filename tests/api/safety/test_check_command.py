"""`python -m services.api.safety --check`: lines in, verdicts out, usable in a pipe, without engine and torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.api.safety.__main__ import main

ROOT = Path(__file__).resolve().parents[3]


def test_a_pipe() -> None:
    lines = [
        {"id": "a", "user": "我会好吗？", "reply": "肯定能治好。"},
        {"id": 2, "messages": [{"role": "user", "content": "你好"}], "reply": "您好。"},
    ]
    program = "import sys; sys.modules['torch'] = sys.modules['vllm'] = None; import runpy; sys.argv[0] = 'safety'; "
    program += "runpy.run_module('services.api.safety', run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-c", program, "--check", "-", "--profile", "seed"],
        input="\n".join(json.dumps(line) for line in lines),
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(f["id"], f["verdict"], f["rules"]) for f in found] == [("a", "block", ["absolute_claim"]), (2, "pass", [])]
    assert all(f["ms"] >= 0 and set(f) == {"id", "verdict", "rules", "ms"} for f in found)


def test_bad_lines_are_named_and_the_others_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"id": 1, "user": "a", "reply": "好"}\n\nnonsense\n{"id": 3, "user": "a"}\n{"reply": "x"}\n')
    assert main(["--check", str(file), "--profile", "seed"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "line 3: not JSON" in err
    assert 'line 4: needs an object with a text "reply"' in err
    assert 'line 5: needs "user" or "messages"' in err


def test_a_missing_file_or_policy_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(tmp_path / "none.jsonl"), "--profile", "seed"]) == 2
    assert "name a readable JSONL file" in capsys.readouterr().err
    assert main(["--check", "-", "--policy", str(tmp_path)]) == 2
    assert "policy.yaml" in capsys.readouterr().err
