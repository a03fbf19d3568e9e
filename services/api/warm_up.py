"""The first generations after a start."""

from __future__ import annotations

import asyncio
import time

from services.api.engine.base import Engine, GenerationRequest, Sampling
from services.contract.chat_format import ChatFormat, Message

WARM_UP_CHOICES = 8  # the first batch of 8 or more compiles a sampling kernel on GPUs, which takes seconds


async def warm_up(engine: Engine, chat_format: ChatFormat) -> None:
    """Short generations, several at once, so that the first client does not pay for kernels that compile on first use."""
    ids = chat_format.write_prompt([Message(role="user", content="你好")])
    sampling = Sampling(max_tokens=8, temperature=0.6, top_p=0.95, top_k=20)

    async def one(n: int) -> None:
        async for _ in engine.generate(GenerationRequest(f"warm-up-{n}-{time.monotonic_ns()}", ids, sampling)):
            pass

    await asyncio.gather(*(one(n) for n in range(WARM_UP_CHOICES)))
