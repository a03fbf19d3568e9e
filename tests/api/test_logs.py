"""Log lines: JSON from the first byte where nobody watches, foreign lines wrapped, one clear line for a failed start."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.api import logs
from tests.fakes import ROOT

FIELDS = {"ts", "level", "logger", "request_id", "message"}


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in the checkout with nothing of ours in its environment but what is given."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MEDTHINK_")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=60)


def lines_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    assert done.stdout == "", "standard output is captured too: log lines go to standard error alone"
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(set(line) >= FIELDS for line in lines)
    assert "Traceback" not in done.stderr
    return lines


def test_bad_settings_end_the_start_with_one_line_each(tmp_path: Path) -> None:
    done = python("-m", "services.api", MEDTHINK_PORT="eighty", MEDTHINK_LOG_LEVEL="loud", MEDTHINK_ENGINE_ARGS="[")
    lines = lines_of(done)
    assert done.returncode == 1
    assert sorted(line["message"].split(":")[0] for line in lines) == [
        "MEDTHINK_ENGINE_ARGS", "MEDTHINK_LOG_LEVEL", "MEDTHINK_PORT",
    ]  # fmt: skip
    assert {line["level"] for line in lines} == {"error"}
    assert {line["request_id"] for line in lines} == {"-"}


def test_a_missing_model_ends_the_start_with_one_clear_line(tmp_path: Path) -> None:
    done = python("-m", "services.api", MEDTHINK_MODEL=str(tmp_path / "nothing"), MEDTHINK_PORT="0")
    lines = lines_of(done)
    assert done.returncode == 1
    (error,) = [line for line in lines if line["level"] == "error"]
    assert "MEDTHINK_MODEL=" in error["message"]
    assert "is no directory" in error["message"]


@pytest.mark.parametrize("present", [[], ["config.json"], ["config.json", "tokenizer.json"]])
def test_an_incomplete_model_names_what_is_missing(tmp_path: Path, present) -> None:
    for name in present:
        (tmp_path / name).write_text("{}")
    done = python("-m", "services.api", MEDTHINK_MODEL=str(tmp_path), MEDTHINK_PORT="0")
    (error,) = [line for line in lines_of(done) if line["level"] == "error"]
    assert done.returncode == 1
    missing = ["config.json", "tokenizer.json", "safetensors"][len(present)]
    assert missing in error["message"]


def test_text_lines_are_for_people() -> None:
    done = python("-m", "services.api", MEDTHINK_PORT="eighty", MEDTHINK_LOG_FORMAT="text")
    # The format itself is a setting: while settings are broken, a place without a terminal gets JSON.
    assert lines_of(done)[0]["level"] == "error"
    done = python("-m", "services.api", MEDTHINK_MODEL="/nowhere", MEDTHINK_LOG_FORMAT="text")
    assert done.returncode == 1
    assert "\x1b[" not in done.stderr, "colours without a terminal"
    assert all(line[2] == line[5] == ":" for line in done.stderr.splitlines())


CHILD = """
import os, subprocess, sys, warnings
from services.api import logs
logs.configure("json", "info")
print("printed")
print("printed to standard error", file=sys.stderr)
os.write(1, b"raw bytes \\xff\\n")
subprocess.run(["echo", "from a child"])
warnings.warn("a warning")
import logging
logging.getLogger("x").error("中文\\n two lines", extra=logs.fields(answer=42))
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("x").exception("broken")
sys.stdout.flush(); sys.stderr.flush()
import time; time.sleep(0.2)
"""


def test_whatever_is_printed_becomes_a_json_line() -> None:
    done = python("-c", CHILD)
    assert done.stdout == ""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    messages = [line["message"] for line in lines]
    for wanted in ("printed", "printed to standard error", "raw bytes \ufffd", "from a child", "中文\n two lines"):
        assert wanted in messages
    assert any("a warning" in message for message in messages)
    by_message = {line["message"]: line for line in lines}
    assert by_message["中文\n two lines"]["answer"] == 42
    assert "ZeroDivisionError" in by_message["broken"]["exception"]
    assert all(set(line) >= FIELDS for line in lines)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hello\n", ("stdout", logging.INFO, "hello")),
        ("\x1b[31mred\x1b[0m\n", ("stdout", logging.INFO, "red")),
        ("WARNING 11-23 18:00:00 [core.py:12] slow\n", ("vllm", logging.WARNING, "slow")),
        ("(EngineCore pid=12) ERROR 11-23 18:00:00 [core.py:12] dead\n", ("vllm.enginecore", logging.ERROR, "dead")),
        ("(EngineCore_DP0 pid=12) Traceback\n", ("vllm.enginecore", logging.INFO, "Traceback")),
        ("(APIServer pid=1) INFO 11-23 18:00:00 up\n", ("vllm", logging.INFO, "up")),
        ("\n", ("stdout", logging.INFO, "")),
        ("Loading safetensors: 100%\n", ("stdout", logging.DEBUG, "Loading safetensors: 100%")),
    ],
)
def test_foreign_lines_keep_their_level_and_source(line, expected) -> None:
    assert logs.read_foreign_line(line) == expected


def record(message: str = "done", **fields) -> logging.LogRecord:
    made = logging.LogRecord("x", logging.INFO, "", 0, message, None, None)
    if fields:
        made.fields = fields
    return made


def test_a_json_line_is_one_line_with_its_request_id() -> None:
    token = logs.request_id.set("req_1")
    try:
        text = logs.JsonFormatter().format(record("a\nb", url="http://x", odd=Path("p")))
    finally:
        logs.request_id.reset(token)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["message"], line["request_id"], line["url"], line["odd"]) == ("a\nb", "req_1", "http://x", "p")
    assert line["ts"].endswith("Z")


def test_a_text_line_shows_fields_and_the_request_id() -> None:
    token = logs.request_id.set("req_1")
    try:
        text = logs.TextFormatter(colour=False).format(record(seconds=0.5))
    finally:
        logs.request_id.reset(token)
    assert text.endswith("info    done  seconds=0.5  request_id=req_1")
    assert "\x1b[" in logs.TextFormatter(colour=True).format(record())
