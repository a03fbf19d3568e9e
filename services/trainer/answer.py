"""`answer`: asks a running API the same scenarios with the base model and with an adapter, for a blinded comparison.

Call it again to go on after an interruption: nothing is asked twice. Automatic figures come at the end; what physicians
do with the answers is in docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from services.contract.chat_format import DEFAULT_SYSTEM_PROMPT
from services.trainer.evaluate.answers import AnswersMissing, Run, read_record, replace_file
from services.trainer.evaluate.api_client import ApiClient
from services.trainer.evaluate.ask import Plan, ask_all, resolve_arms
from services.trainer.evaluate.metrics import measure, metrics_table
from services.trainer.evaluate.progress import Progress
from services.trainer.evaluate.scenario import SCENARIOS, choose, read_scenarios

KEY, JUDGE_KEY = "MEDTHINK_API_KEY", "MEDTHINK_JUDGE_KEY"
METRICS = "metrics.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder for the answers; again: goes on")
    parser.add_argument(
        "--adapter", required=True, metavar="NAME[@VERSION]", help="the adapter, by default its current version"
    )
    parser.add_argument("--base", default="Qwen3-1.7B", help="model to compare with (default: %(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the running API (default: %(default)s)")
    parser.add_argument("--api-key", metavar="KEY", help=f"default: the environment's {KEY}")
    parser.add_argument("--scenarios", type=Path, default=SCENARIOS, metavar="JSONL", help="default: the clinical ones")
    parser.add_argument("--only", nargs="+", metavar="ID", help="these scenarios alone")
    parser.add_argument(
        "--seeds", type=_count, default=3, metavar="K", help="answers per scenario and arm (default: 3)"
    )
    parser.add_argument(
        "--system", default=DEFAULT_SYSTEM_PROMPT, help="system prompt of both arms (default: the server's)"
    )
    parser.add_argument("--temperature", type=float, default=0.6, help="default: %(default)s")
    parser.add_argument("--top-p", type=float, default=0.95, help="default: %(default)s")
    parser.add_argument("--top-k", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--max-tokens", type=_count, default=2048, help="of thinking and answer (default: %(default)s)")
    parser.add_argument("--thinking-budget", type=_count, metavar="N", help="most tokens to think (default: no limit)")
    parser.add_argument("--concurrency", type=_count, default=2, metavar="N", help="requests at a time (default: 2)")
    parser.add_argument(
        "--judge-url", metavar="URL", help="also have a model compare the answers; by default none does"
    )
    parser.add_argument(
        "--judge-model", metavar="NAME", help=f"its name there; its key is the environment's {JUDGE_KEY}"
    )


def run(options: argparse.Namespace) -> int:
    """0 and the table of automatic figures; 130 when interrupted, with what was answered kept. Errors are raised."""
    progress = Progress("answer")
    try:
        answered = _answer(options, progress)
        if options.judge_url:
            _judge(options, answered, progress)
    except KeyboardInterrupt:
        progress.end()
        print("answer: interrupted; what was answered is kept. The same command goes on", file=sys.stderr)
        return 130
    finally:
        progress.end()
    figures = measure(answered)
    replace_file(options.out / METRICS, (json.dumps(figures, ensure_ascii=False, indent=1) + "\n").encode())
    print(metrics_table(figures))
    print(f"\n{len(answered.answers)} answers in {options.out}; next: have physicians compare them, docs/evaluation.md")
    return 0


def _answer(options: argparse.Namespace, progress: Progress) -> Run:
    scenarios = read_scenarios(options.scenarios)
    if options.only:
        scenarios = choose(scenarios, options.only)
    key = options.api_key or os.environ.get(KEY) or "EMPTY"
    client = ApiClient(options.url, key, on_wait=progress.note)
    arms = resolve_arms(client, options.base, _pinned(options))
    plan = Plan(scenarios, arms, tuple(range(options.seeds)), _settings(options), options.system)
    progress.note(f"{arms['base']} and {arms['adapter']}: {len(scenarios)} scenarios, {options.seeds} seeds")
    return ask_all(
        client,
        plan,
        options.out,
        concurrency=options.concurrency,
        on_answer=lambda done, total, answer: progress.show(done, total, answer.scenario if answer else ""),
    )


def _pinned(options: argparse.Namespace) -> str:
    """The adapter as asked for; without a version, the one that a run in the folder began with."""
    asked = str(options.adapter)
    if "@" in asked:
        return asked
    try:
        begun = read_record(options.out).arms["adapter"]
    except AnswersMissing:
        return asked
    return begun if begun.partition("@")[0] == asked else asked


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    settings = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "max_tokens": options.max_tokens,
        "enable_thinking": True,  # of both arms: a reply without thinking would tell the raters which arm it is
    }
    return settings | ({"thinking_budget": options.thinking_budget} if options.thinking_budget else {})


def _judge(options: argparse.Namespace, answered: Run, progress: Progress) -> None:
    from services.trainer.evaluate.judge import JudgeError, describe, judge_run

    if not options.judge_model:
        raise JudgeError("--judge-url needs --judge-model: say which model there is to judge")
    client = ApiClient(
        options.judge_url.rstrip("/").removesuffix("/v1"), os.environ.get(JUDGE_KEY) or "EMPTY", on_wait=progress.note
    )
    progress.end()
    verdicts = judge_run(
        client, options.judge_model, answered, on_pair=lambda done, total: progress.show(done, total, "judged")
    )
    progress.end()
    print(describe(verdicts) + "\n")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value
