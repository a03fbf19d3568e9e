"""What the guard costs the serving process: CPU time per token with it and without it, in one run.

    python -m benchmarks.guard_cost [--model DIR] [--streams 64] [--bundle 1] [--out FILE.json]

No engine: tokens are handed out one at a time to many streams at once, and go the whole way of a request (split, judged,
presented, framed) up to the socket. Texts are the demo's dialogues, and random tokens, which no model of use writes and a
benchmark with random weights does. `default` and `off` take turns. A real server has the engine's own work on top, for both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry
from tokenizers import Tokenizer

from benchmarks.safety import dialogues
from benchmarks.scripted_engine import ScriptedEngine
from services.api.app import Model, Service, build
from services.api.settings import DEMO_MODEL, Settings
from services.contract.chat_format import END_THINK, IM_END, THINK, ChatFormat

ROUNDS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=DEMO_MODEL, help="folder with the tokenizer (default: the demo's)"
    )
    parser.add_argument("--streams", type=int, default=64, help="requests at a time (default: %(default)s)")
    parser.add_argument("--bundle", type=int, default=1, help="tokens handed out at a time (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    chat_format = ChatFormat.load(options.model, Tokenizer.from_str)
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    found: dict[str, Any] = {}
    for name, texts in (("dialogues", _dialogues(chat_format)), ("random tokens", _random(chat_format, tokenizer))):
        found[name] = asyncio.run(_compare(chat_format, tokenizer, texts, options.streams, options.bundle))
    when = f"{datetime.now(UTC):%Y-%m-%d}"
    print(f"{platform.machine()}, Python {platform.python_version()}, {when}")
    print(f"{options.streams} streams, {options.bundle} tokens at a time")
    print(f"{'texts':<16}{'off us/token':>14}{'default us/token':>18}{'guard us/token':>16}{'ratio':>8}")
    for name, (off, on) in found.items():
        print(f"{name:<16}{off:>14.1f}{on:>18.1f}{on - off:>16.1f}{on / off:>8.2f}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


def _dialogues(chat_format: ChatFormat) -> list[list[int]]:
    control, text = chat_format.control_ids, chat_format.encode_text
    return [
        [control[THINK], *text(f"\n{d.think}\n"), control[END_THINK], *text(f"\n\n{d.answer}"), control[IM_END]]
        for d in list(dialogues())[:200]
    ]


def _random(chat_format: ChatFormat, tokenizer: Any) -> list[list[int]]:
    dice, special = random.Random(1), set(chat_format.control_ids.values())
    plain = [i for i in range(tokenizer.get_vocab_size()) if i not in special]
    return [[*dice.choices(plain, k=256), chat_format.control_ids[IM_END]] for _ in range(200)]


async def _compare(
    chat_format: ChatFormat, tokenizer: Any, texts: Sequence[Sequence[int]], streams: int, bundle: int
) -> tuple[float, float]:
    """Microseconds of CPU per token, median of the rounds: without the guard, and with it."""
    times: dict[str, list[float]] = {"off": [], "default": []}
    services = {}
    for profile in times:
        settings = Settings(safety_profile=profile, database="", adapters="", max_active_requests=4096)
        engine = ScriptedEngine(texts, tokenizer.get_vocab_size(), bundle=bundle)
        services[profile] = build(
            settings, Model(engine, chat_format, tokenizer.id_to_token), registry=CollectorRegistry()
        )
    async with services["off"].life.run(services["off"].app), services["default"].life.run(services["default"].app):
        while not all(service.supervisor.is_ready for service in services.values()):  # noqa: ASYNC110 - two parts
            await asyncio.sleep(0.01)
        for n in range(ROUNDS):
            print(f"\rround {n + 1}/{ROUNDS}", end="", file=sys.stderr)
            for profile, service in services.items():
                begun = time.process_time()
                await asyncio.gather(*(_ask(service, seed) for seed in range(streams)))
                tokens = sum(len(texts[seed % len(texts)]) for seed in range(streams))
                times[profile].append((time.process_time() - begun) / tokens * 1e6)
    print(file=sys.stderr)
    return statistics.median(times["off"][1:]), statistics.median(times["default"][1:])


async def _ask(service: Service, seed: int) -> None:
    """One streamed request, without a socket."""
    question = {"role": "user", "content": "最近总是睡不好，白天没有精神，有什么办法吗？"}
    body = orjson.dumps({"messages": [question], "stream": True, "seed": seed})
    left = asyncio.Event()
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            await left.wait()
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200, message

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    await service.app(scope, receive, send)


if __name__ == "__main__":
    sys.exit(main())
