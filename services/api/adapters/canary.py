"""A few tokens from a freshly loaded adapter before anybody else gets them: finite, and not what the base model says."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from services.api.engine.base import AdapterHandle, AdapterRefused, Engine, EngineDied, GenerationRequest, Sampling

TOKENS = 8


class Canary:
    """Greedy tokens with their log-probabilities, base against adapter."""

    def __init__(self, engine: Engine, prompt_ids: Sequence[int]) -> None:
        self._engine = engine
        self._prompt_ids = list(prompt_ids)
        self._base: list[tuple[int, float]] | None = None

    async def try_out(self, adapter: AdapterHandle) -> None:
        """Raises `AdapterRefused` for numbers that are none, and for an adapter that changes nothing at all.

        vLLM serves an adapter whose modules it does not find as if it were the base model, without a word.
        """
        if self._base is None:
            self._base = await self._sample(None)
        ours = await self._sample(adapter)
        if not all(math.isfinite(logprob) for _, logprob in ours):
            raise AdapterRefused("its answers are not finite numbers: training has diverged")
        if ours == self._base:
            raise AdapterRefused("its answers are the base model's to the last digit: it changes nothing")

    def forget(self) -> None:
        """After an engine restart the base model's numbers are taken anew."""
        self._base = None

    async def _sample(self, adapter: AdapterHandle | None) -> list[tuple[int, float]]:
        sampling = Sampling(max_tokens=TOKENS, temperature=0.0, logprobs=0, ignore_eos=True)
        request_id = f"canary-{time.monotonic_ns()}"
        found: list[tuple[int, float]] = []
        async for delta in self._engine.generate(
            GenerationRequest(request_id, self._prompt_ids, sampling, adapter=adapter)
        ):
            found += [(i, at.sampled) for i, at in zip(delta.token_ids, delta.logprobs, strict=True)]
        if not found:
            raise EngineDied("the engine gave no token")
        return found
