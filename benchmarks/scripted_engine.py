"""An engine for benchmarks of what stands around an engine: it gives out tokens that it was given, and computes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from services.api.engine.base import AdapterHandle, EngineDelta, EngineState, GenerationRequest, ModelInfo


class ScriptedEngine:
    """Gives the text that the request's seed names, `at_once` or `bundle` tokens at a time beside the other requests."""

    def __init__(
        self, texts: Sequence[Sequence[int]], vocab_size: int, *, at_once: bool = False, bundle: int = 1
    ) -> None:
        self._texts = [list(text) for text in texts]
        self._bundle = bundle
        self._at_once = at_once
        self.state: EngineState = "stopped"
        self.info = ModelInfo(16384, vocab_size, "scripted", "none")

    async def start(self) -> None:
        self.state = "ready"

    async def stop(self) -> None:
        self.state = "stopped"

    async def check(self, request: GenerationRequest) -> None: ...

    async def load_adapter(self, adapter: AdapterHandle) -> None: ...

    async def unload_adapter(self, adapter: AdapterHandle) -> None: ...

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[EngineDelta, None]:
        ids = self._texts[(request.sampling.seed or 0) % len(self._texts)]
        if self._at_once:
            yield EngineDelta(ids, (), finish_reason="stop")
            return
        for at in range(0, len(ids) - 1, self._bundle):
            await asyncio.sleep(0)
            yield EngineDelta(ids[at : min(at + self._bundle, len(ids) - 1)], ())
        yield EngineDelta([ids[-1]], (), finish_reason="stop")
