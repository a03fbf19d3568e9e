"""What a history of 20 turns costs a reader: time to the first frame with the server's memory, and without it.

    python -m benchmarks.memory_first_token [--database URL] [--sessions 100] [--out FILE.json]

The whole service over loopback, guard included, with the demo's tokenizer and a model that answers at once, so that only the
way to the model is timed. Three ways take turns over the same conversations: the client sends all of it and there is no session;
the server brings the history, which this process has at hand; it has to read it from the database, since another replica had the
turn before. The differences of the medians are what the memory adds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from prometheus_client import CollectorRegistry
from tokenizers import Tokenizer

from benchmarks.memory import ANSWER, QUESTION, TURNS
from benchmarks.scripted_engine import ScriptedEngine
from services.api.app import Model, build
from services.api.memory.conversations import Memory
from services.api.memory.tenancy import ANONYMOUS
from services.api.settings import DEMO_MODEL, Settings
from services.contract.chat_format import END_THINK, IM_END, THINK, ChatFormat

CHAT = "/v1/chat/completions"
SENT, AT_HAND, READ = (
    "client sends the history",
    "server brings the history, at hand",
    "server brings the history, read",
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", help="a PostgreSQL URL; left out: SQLite in a temporary folder")
    parser.add_argument("--sessions", type=int, default=100, help="conversations of 20 turns (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="medthink-bench-") as folder:
        found = asyncio.run(_measure(options.database or f"{folder}/memory.db", options.sessions))
    print(f"{platform.machine()}, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}")
    for name, values in found.items():
        print(f"{name:<44} p50 {_at(values, 50):7.2f} ms   p99 {_at(values, 99):7.2f} ms")
    for name in (AT_HAND, READ):
        print(f"{f'added: {name}':<44} p50 {_at(found[name], 50) - _at(found[SENT], 50):7.2f} ms")
    if options.out:
        options.out.write_text(json.dumps(found), encoding="utf-8")
    return 0


def _at(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


@contextlib.asynccontextmanager
async def _serving(database: str) -> AsyncIterator[tuple[httpx.AsyncClient, Memory]]:
    chat_format = ChatFormat.load(DEMO_MODEL, Tokenizer.from_str)
    control, text = chat_format.control_ids, chat_format.encode_text
    reply = [control[THINK], *text("\n想一想。\n"), control[END_THINK], *text("\n\n" + ANSWER), control[IM_END]]
    id_to_token = Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json")).id_to_token
    settings = Settings(database=database, adapters="", log_level="error")
    service = build(
        settings,
        Model(ScriptedEngine([reply], 6144, at_once=True), chat_format, id_to_token),
        registry=CollectorRegistry(),
    )
    memory = service.memory
    assert memory is not None
    config = uvicorn.Config(service.app, host="127.0.0.1", port=0, log_config=None, http="httptools", access_log=False)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not (server.started and service.supervisor.is_ready):  # noqa: ASYNC110 - two conditions of two parts
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client, memory
    server.should_exit = True
    await task


async def _measure(database: str, sessions: int) -> dict[str, list[float]]:
    async with _serving(database) as (client, memory):
        history: list[dict[str, str]] = []
        for n in range(sessions):
            print(f"\rmaking conversations {n + 1}/{sessions}", end="", file=sys.stderr)
            for turn in range(TURNS):
                question = {"role": "user", "content": f"{turn}：{QUESTION}"}
                answer = await client.post(CHAT, json={"session_id": f"s{n}", "messages": [question]})
                if n == 0:
                    message = answer.raise_for_status().json()["choices"][0]["message"]
                    history += [question, {"role": "assistant", "content": message["content"]}]
        print(file=sys.stderr)
        new = {"role": "user", "content": "还有别的办法吗？"}
        found: dict[str, list[float]] = {SENT: [], AT_HAND: [], READ: []}
        for n in range(sessions):
            found[SENT].append(await _first(client, {"messages": [*history, new]}))
            found[AT_HAND].append(await _first(client, {"messages": [new], "session_id": f"s{n}"}))
            memory.forget(ANONYMOUS, f"s{n}")
            found[READ].append(await _first(client, {"messages": [new], "session_id": f"s{n}"}))
        return found


async def _first(client: httpx.AsyncClient, body: dict[str, Any]) -> float:
    """Milliseconds until the first bytes of the stream."""
    begun = time.perf_counter()
    async with client.stream("POST", CHAT, json={**body, "stream": True}) as answer:
        first = 0.0
        async for _ in answer.aiter_raw():
            first = first or time.perf_counter() - begun
    return first * 1000


if __name__ == "__main__":
    sys.exit(main())
