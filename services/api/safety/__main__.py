"""`python -m services.api.safety --check FILE.jsonl`: verdicts for replies that already exist. No engine, no torch.

Reads a line per reply, {id, user, reply} or {id, messages, reply}, with `reasoning` and `system` if there are any; writes
a line per reply, {id, verdict, rules, ms}, as soon as it is judged, so that it can stand in a pipe.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from services.api.safety.judge import Judge, judge_reply
from services.api.safety.opening import Opening
from services.api.safety.policy import FOLDER, PolicyError, read_policy
from services.api.safety.rules import default_rules
from services.api.safety.seed import SeedJudge


class LineError(ValueError):
    """A line that is no reply to judge; the message says what is missing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every line was judged; 1 when some were not, each named on standard error; 2 when nothing could be."""
    options = _parser().parse_args(arguments)
    try:
        judging = _judging(options)
        with _open(options.check) as lines:
            return _check(judging, lines, options.hits)
    except PolicyError as error:
        for line in str(error).splitlines():
            print(f"safety: {line}", file=sys.stderr)
    except BrokenPipeError:  # whoever read from us has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, UnicodeDecodeError) as error:
        print(f"safety: {options.check}: {error}: name a readable JSONL file, or - for standard input",
              file=sys.stderr)  # fmt: skip
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.api.safety", description=__doc__.splitlines()[0])
    parser.add_argument("--check", required=True, metavar="FILE.jsonl", help="replies to judge; - reads standard input")
    parser.add_argument("--profile", choices=("default", "seed"), default="default", help="seed: the article's regexes")
    parser.add_argument("--policy", type=Path, default=FOLDER, help="folder with the policy (default: the shipped one)")
    parser.add_argument("--hits", action="store_true", help="add each hit's rule, verdict, term and place")
    return parser


def _judging(options: argparse.Namespace) -> Opening:
    return SeedJudge() if options.profile == "seed" else Judge(read_policy(options.policy), default_rules())


def _open(name: str) -> TextIO:
    return sys.stdin if name == "-" else open(name, encoding="utf-8")


def _check(judging: Opening, lines: Iterable[str], with_hits: bool) -> int:
    status = 0
    for number, text in _numbered(lines):
        try:
            answer = _judge_line(judging, text, with_hits)
        except LineError as error:
            print(f"safety: line {number}: {error}", file=sys.stderr)
            status = 1
            continue
        print(json.dumps(answer, ensure_ascii=False), flush=True)
    return status


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    return ((n, line) for n, line in enumerate(lines, 1) if line.strip())


def _judge_line(judging: Opening, text: str, with_hits: bool) -> dict[str, Any]:
    line = _parse(text)
    messages = _messages(line)
    begun = time.perf_counter()
    found = judge_reply(
        judging, messages, line["reply"], reasoning=line.get("reasoning") or "", system_prompt=line.get("system")
    )
    spent = (time.perf_counter() - begun) * 1000
    answer: dict[str, Any] = {
        "id": line.get("id"),
        "verdict": found.verdict.word,
        "rules": list(found.rules),
        "ms": round(spent, 3),
    }
    if with_hits:
        answer["hits"] = [
            {"rule": h.rule, "verdict": h.verdict.word, "term": h.term, "part": h.part, "start": h.start, "end": h.end}
            for h in found.hits
        ]
    return answer


def _parse(text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise LineError(f"not JSON ({error})") from error
    if not isinstance(line, dict) or not isinstance(line.get("reply"), str):
        raise LineError('needs an object with a text "reply"')
    for name in ("reasoning", "system"):
        if not isinstance(line.get(name), str | None):
            raise LineError(f"{name!r} must be text")
    return line


def _messages(line: dict[str, Any]) -> list[tuple[str, str]]:
    """The conversation before the reply: `messages`, and `user` as its last message where both are given."""
    given = line.get("messages") or []
    if not isinstance(given, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in given
    ):
        raise LineError('"messages" must be a list of {"role", "content"}')
    found = [(m["role"], m["content"]) for m in given if m["role"] in ("user", "assistant")]
    user = line.get("user")
    if isinstance(user, str):
        found.append(("user", user))
    if not found and user is None:
        raise LineError('needs "user" or "messages"')
    return found


if __name__ == "__main__":
    raise SystemExit(main())
