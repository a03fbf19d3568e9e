"""A server to be killed: the real app and store over a scripted engine. Run as `python -m tests.api.memory.served URL`.

It prints its address, then whatever it logs.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import uvicorn
from tokenizers import Tokenizer

from tests.fakes import DEMO, FakeEngine, Pen, demo_chat_format
from tests.running import service_of


def echoing(pen: Pen) -> Any:
    """A model that repeats the latest question behind a thought."""

    def reply(request: Any) -> list[int]:
        prompt = pen.chat_format.read(list(request.prompt_ids))
        asked = [m.content for m in prompt.messages if m.role == "user"][-1]
        return pen.thought("想一想。", f"您说：{asked}。")

    return reply


async def main(url: str) -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
    pen = Pen(demo_chat_format())
    engine = FakeEngine(pen.chat_format, echoing(pen), sizes=(4,), delay_s=0.001)
    id_to_token = Tokenizer.from_file(str(DEMO / "tokenizer.json")).id_to_token
    service, _ = service_of(engine, id_to_token, {"database": url})
    server = uvicorn.Server(uvicorn.Config(service.app, host="127.0.0.1", port=0, log_config=None, http="httptools"))
    task = asyncio.create_task(server.serve())
    while not (server.started and service.supervisor.is_ready):  # noqa: ASYNC110 - two conditions of two parts
        await asyncio.sleep(0.01)
    print(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", flush=True)
    await task


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
