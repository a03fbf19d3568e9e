"""A process to be killed: begins and finishes turns in a loop and prints what was acknowledged. Run by `test_kill.py`."""

from __future__ import annotations

import asyncio
import sys

from services.api.memory.records import NewTurn, Outcome
from services.api.memory.store import SessionStore
from services.contract.chat_format import Message

SESSIONS = 4


async def talk(store: SessionStore, life: str, name: str) -> None:
    n = 0
    while True:
        n += 1
        mark = f"{life}.{name}.{n}"
        found = await store.load("t", name)
        session = found.session if found else store.draft("t", name)
        handle = await store.begin_turn(session, NewTurn((Message(role="user", content=mark),), mark))
        print(f"begun {name} {handle.seq} {mark}", flush=True)
        await store.finish_turn(handle, Outcome("done", mark, "thought" * 200))
        print(f"done {name} {handle.seq} {mark}", flush=True)


async def main(url: str, life: str) -> None:
    store = SessionStore(url)
    await store.open()
    print("open", flush=True)
    await asyncio.gather(*(talk(store, life, f"s{n}") for n in range(SESSIONS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
