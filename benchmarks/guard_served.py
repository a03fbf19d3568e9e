"""What the guard costs a served model: tokens per second and time to the first words, two running servers taking turns.

    python -m benchmarks.guard_served --off URL --on URL --tokenizer FOLDER/tokenizer.json [--concurrency 1,64,256]
    python -m benchmarks.guard_served --off URL --on URL --words

Both servers hold the same model; one runs with MEDTHINK_SAFETY_PROFILE=off. The first form loads them: about 512 tokens in, 256
out, no end, and only words of the demo's dialogues allowed, so that a model of random weights writes words and sentence ends. The
second asks the demo model's own questions one by one and times the first characters of thought and answer. Ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.safety import dialogues

TOKENS = 256
ROUNDS = 2
LIMIT_S = 120.0  # of one round
_REASONING, _ANSWER = re.compile(rb'"reasoning":"[^"]'), re.compile(rb'"content":"[^"]')


@dataclass(frozen=True)
class Reply:
    """Seconds after the request was sent; `None`: there was none."""

    first_reasoning: float | None
    first_answer: float | None
    whole: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--off", required=True, metavar="URL", help="the server without the guard")
    parser.add_argument("--on", required=True, metavar="URL", help="the server with it")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json of the served model")
    parser.add_argument("--concurrency", default="1,64,256")
    parser.add_argument("--words", action="store_true", help="time the first words of the demo model's own answers")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    urls = {"off": options.off, "on": options.on}
    found: dict[str, Any] = {}
    if options.words:
        found["words"] = asyncio.run(_words(urls))
    else:
        body = _body(options.tokenizer)
        for n in map(int, options.concurrency.split(",")):
            found[str(n)] = asyncio.run(_load(urls, body, n))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


def _body(tokenizer: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer

    encode = Tokenizer.from_file(str(tokenizer)).encode
    replies = list(dialogues())
    counts: dict[int, int] = {}
    for reply in replies:
        for token_id in encode(reply.think + reply.answer, add_special_tokens=False).ids:
            counts[token_id] = counts.get(token_id, 0) + 1
    words = sorted(counts, key=lambda i: -counts[i])[:1024]  # as many as vLLM takes
    question, n = "", 0
    while len(encode(question).ids) < 500:
        question += replies[n].user + replies[n].answer
        n += 1
    return {
        "messages": [{"role": "user", "content": question}], "stream": True, "max_tokens": TOKENS, "ignore_eos": True,
        "temperature": 1.0, "allowed_token_ids": words,
    }  # fmt: skip


async def _load(urls: dict[str, str], body: dict[str, Any], concurrency: int) -> dict[str, Any]:
    """Tokens per second of each round, the servers in turn."""
    requests = max(4, concurrency * 2)
    speeds: dict[str, list[float]] = {name: [] for name in urls}
    firsts: dict[str, list[float]] = {name: [] for name in urls}
    for name in urls:  # warms caches and kernels of this batch size
        await _round(urls[name], body, min(requests, concurrency), concurrency)
    for _ in range(ROUNDS):
        for name, url in urls.items():
            replies, seconds = await _round(url, body, requests, concurrency)
            speeds[name].append(requests * TOKENS / seconds)
            firsts[name] += [r.first_answer for r in replies if r.first_answer is not None]
    off, on = (statistics.fmean(speeds[name]) for name in ("off", "on"))
    shown = {name: [round(v) for v in values] for name, values in speeds.items()}
    first = {name: round(statistics.median(values) * 1000, 1) for name, values in firsts.items()}
    print(
        f"{concurrency:>4} in flight: tokens/s {shown}, ratio {on / off:.3f}; first answer ms p50 {first}", flush=True
    )
    return {"tokens_per_s": shown, "ratio": on / off, "first_answer_ms_p50": first}


async def _round(url: str, body: dict[str, Any], requests: int, concurrency: int) -> tuple[list[Reply], float]:
    left = itertools.count()
    replies: list[Reply] = []

    async def worker() -> None:
        while (n := next(left)) < requests:
            replies.append(await _ask(url, {**body, "seed": n}))

    begun = time.perf_counter()
    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*(worker() for _ in range(concurrency)))
    return replies, time.perf_counter() - begun


async def _words(urls: dict[str, str]) -> dict[str, Any]:
    questions = [reply.user for reply in dialogues()][::7][:40]
    times: dict[str, dict[str, list[float]]] = {name: {"reasoning": [], "answer": [], "whole": []} for name in urls}
    for question in [questions[0], *questions]:
        for name, url in urls.items():
            body = {
                "messages": [{"role": "user", "content": question}],
                "stream": True,
                "temperature": 0,
                "max_tokens": 600,
            }
            reply = await _ask(url, body)
            if reply.first_reasoning is not None and reply.first_answer is not None:
                times[name]["reasoning"].append(reply.first_reasoning)
                times[name]["answer"].append(reply.first_answer)
                times[name]["whole"].append(reply.whole)
    found = {
        name: {what: [round(_at(v, p) * 1000, 1) for p in (50, 99)] for what, v in of.items()}
        for name, of in times.items()
    }
    for name, figures in found.items():
        print(f"guard {name}: ms p50, p99 {figures}", flush=True)
    return found


def _at(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


async def _ask(url: str, body: dict[str, Any]) -> Reply:
    """One streamed request over a connection of its own; raises `RuntimeError` when it does not end as it should."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1 << 20)
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
    begun = time.perf_counter()
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    reasoning = answer = None
    status = await reader.readline()
    seen = b""
    while piece := await reader.read(1 << 16):
        now = time.perf_counter() - begun
        if reasoning is None and _REASONING.search(piece):
            reasoning = now
        if answer is None and _ANSWER.search(piece):
            answer = now
        seen = (seen + piece)[-256:]
    writer.close()
    if b" 200 " not in status or b"[DONE]" not in seen:
        raise RuntimeError(f"{status!r} {seen!r}")
    return Reply(reasoning, answer, time.perf_counter() - begun)


if __name__ == "__main__":
    sys.exit(main())
