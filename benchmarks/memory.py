"""What the memory costs: loading and writing turns in small and large stores, and the time it adds before the first token.

    python -m benchmarks.memory [--postgres URL] [--sizes 10,1000,100000] [--out FILE.json]

SQLite in a temporary folder; PostgreSQL too when an empty database is named. Each measured session has 20 turns; the store
holds as many further sessions of one turn as `--sizes` says. `benchmarks.memory_first_token` times what a reader notices.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import insert

from services.api.memory.records import NewTurn, Outcome
from services.api.memory.rows import begun_values, finished_values, session_values
from services.api.memory.schema import Schema
from services.api.memory.store import SessionStore
from services.contract.chat_format import Message

TURNS = 20
CONCURRENCY = 64
ROUNDS = 200
QUESTION = "最近血压有点高，早上一百四十五，晚上一百三十八，需要马上吃药吗？"
ANSWER = "先连续一周早晚各量两次并记下来。改善饮食、少盐、规律运动；平均仍高于一百四十再请医生评估是否用药。" * 3
REASONING = "首先看血压水平和时间。其次看有没有头痛胸闷等不适。最后考虑生活方式。" * 6


@dataclass(frozen=True)
class Figures:
    """Milliseconds. `load`: a session with 20 turns; `begin` and `finish`: one turn, durable; `_64`: 64 sessions at a time."""

    database: str
    sessions: int
    load_p50: float
    load_p99: float
    begin_p50: float
    begin_p99: float
    finish_p50: float
    finish_p99: float
    load_p99_64: float
    begin_p99_64: float
    finish_p99_64: float
    turns_per_s_64: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", metavar="URL", help="an empty database; it is filled")
    parser.add_argument("--sizes", default="10,1000,100000", help="sessions in the store (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    sizes = sorted(int(size) for size in options.sizes.split(","))
    found: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="medthink-bench-") as folder:
        urls = [f"sqlite:///{folder}/memory.db", *([options.postgres] if options.postgres else [])]
        for url in urls:
            found += asyncio.run(_measure(url, sizes))
    print(
        f"\n{platform.processor() or platform.machine()}, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}"
    )
    _print(found)
    if options.out:
        options.out.write_text(json.dumps([asdict(f) for f in found], indent=1), encoding="utf-8")
    return 0


async def _measure(url: str, sizes: Sequence[int]) -> list[Figures]:
    store = SessionStore(url)
    await store.open()
    found = []
    try:
        there = 0
        for size in sizes:
            await _fill(store, there, size)
            there = size
            name = "PostgreSQL" if url.startswith("postgres") else "SQLite"
            print(f"{name} with {size} sessions ...", file=sys.stderr)
            found.append(await _time(store, name, size))
    finally:
        await store.close()
    return found


async def _fill(store: SessionStore, begin: int, end: int) -> None:
    """Further sessions of one turn each, written many at a time."""
    schema = Schema()
    turn = {
        **begun_values(_new("filled"), 1, store._keys.new("bench", "x")[0]),
        **finished_values(Outcome("done", ANSWER, REASONING), 1, store._keys.new("bench", "x")[0]),
        "owner": "bench", "created": time.time(), "finished": time.time(),
    }  # fmt: skip
    for at in range(begin, end, 5000):
        rows = []
        for n in range(at, min(end, at + 5000)):
            session = store.draft("bench", f"filled-{n}")
            rows.append(
                session_values(session, "{}", store._keys.new("bench", session.id)[0], None)
                | {"version": 1, "turns": 1}
            )
        async with store.database.write() as connection:
            made = (
                (await connection.execute(insert(schema.sessions).returning(schema.sessions.c.row), rows))
                .scalars()
                .all()
            )
            await connection.execute(insert(schema.turns), [{**turn, "session": row} for row in made])


def _new(request_id: str) -> NewTurn:
    return NewTurn((Message(role="user", content=QUESTION),), request_id, ids=tuple(range(40)), format_digest="bench")


async def _talk(store: SessionStore, name: str, turns: int) -> list[tuple[float, float, float]]:
    """Milliseconds of load, begin and finish of each turn."""
    times = []
    for n in range(turns):
        at = [time.perf_counter()]
        history = await store.load("bench", name)
        session = history.session if history else store.draft("bench", name)
        at.append(time.perf_counter())
        handle = await store.begin_turn(session, _new(f"{name}-{n}"))
        at.append(time.perf_counter())
        await store.finish_turn(handle, Outcome("done", ANSWER, REASONING, ids=tuple(range(200))))
        at.append(time.perf_counter())
        a, b, c, d = (t * 1000 for t in at)
        times.append((b - a, c - b, d - c))
    return times


async def _time(store: SessionStore, name: str, size: int) -> Figures:
    prefix = f"{name}-{size}"
    alone = []
    for n in range(ROUNDS // 10):
        await _talk(store, f"{prefix}-{n}", TURNS)
        alone += await _talk(store, f"{prefix}-{n}", 10)  # on 20 turns and a few more
    await asyncio.gather(*(_talk(store, f"{prefix}-many-{n}", TURNS) for n in range(CONCURRENCY)))
    begun = time.perf_counter()
    many = await asyncio.gather(*(_talk(store, f"{prefix}-many-{n}", 5) for n in range(CONCURRENCY)))
    seconds = time.perf_counter() - begun
    together = [t for times in many for t in times]
    load, begin, finish = ([t[i] for t in alone] for i in range(3))
    load_64, begin_64, finish_64 = ([t[i] for t in together] for i in range(3))
    return Figures(
        name, size, _at(load, 50), _at(load, 99), _at(begin, 50), _at(begin, 99), _at(finish, 50), _at(finish, 99),
        _at(load_64, 99), _at(begin_64, 99), _at(finish_64, 99), round(len(together) / seconds, 1),
    )  # fmt: skip


def _at(values: Sequence[float], percent: int) -> float:
    return round(statistics.quantiles(values, n=100)[percent - 1], 2)


def _print(found: Sequence[Figures]) -> None:
    head = (
        "database",
        "sessions",
        "load p50/p99",
        "begin p50/p99",
        "finish p50/p99",
        "64: load p99",
        "begin p99",
        "finish p99",
        "turns/s",
    )
    rows = [
        (
            f.database, str(f.sessions), f"{f.load_p50} / {f.load_p99}", f"{f.begin_p50} / {f.begin_p99}",
            f"{f.finish_p50} / {f.finish_p99}", str(f.load_p99_64), str(f.begin_p99_64), str(f.finish_p99_64),
            str(f.turns_per_s_64),
        )
        for f in found
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)))
    print("milliseconds; load: a session of 20 to 30 turns; begin and finish: one turn, durable")


if __name__ == "__main__":
    sys.exit(main())
