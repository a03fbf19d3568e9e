"""The lean lane: takes tokens from the engine step by step, for all requests at once, and hands them on in bundles under load.

vLLM makes objects and wakes a task for every token of every request; one in the middle of a reply needs none of that. The
first and the last output of a request, and whatever carries more than token ids (log-probabilities, events), still go vLLM's
way, so that its bookkeeping, statistics and errors stay its own. Stands in the place of `AsyncLLM`'s output handler, and uses
what vLLM 0.26 to 0.33 share.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.api.engine.base import EngineDied

log = logging.getLogger(__name__)

SLICE = 128  # outputs that vLLM's own handler takes between two looks at the event loop
ALONE = 16  # up to so many running requests every token is handed on at once
PAUSE_PER_REQUEST_S = 0.000_16
LONGEST_PAUSE_S = 0.04


def pause_s(running: int) -> float:
    """Shortest time between two bundles of one request: none for few requests, 10 ms at 64, 40 ms from 250 on.

    A step of 256 requests takes about 11 ms on an H100: bundles of four tokens, which nobody can tell from single ones.
    """
    return 0.0 if running <= ALONE else min(LONGEST_PAUSE_S, running * PAUSE_PER_REQUEST_S)


@dataclass(slots=True)
class _Bundle:
    """One request's tokens that wait for their reader. They came before whatever is in `queue`."""

    queue: Any
    state: Any = None
    ids: list[int] = field(default_factory=list)
    due: float = 0.0


class LeanLane:
    """The output handler of one `AsyncLLM`, and the reading end of its requests."""

    def __init__(self, llm: Any) -> None:
        self._core = llm.engine_core
        self._processor = llm.output_processor
        self._renderer = llm.renderer
        self._logger = llm.logger_manager
        self._counts = llm.log_stats
        self._bundles: dict[str, _Bundle] = {}

    def install(self, llm: Any) -> None:
        """To be called in the event loop, before the first request."""
        if llm.output_handler is not None:
            llm.output_handler.cancel()
        llm.output_handler = asyncio.create_task(self._run(), name="engine outputs")

    async def read(self, queue: Any) -> AsyncGenerator[tuple[Sequence[int], Any], None]:
        """Of a request added to the `AsyncLLM`, by the queue that it gave: new ids, and vLLM's output where there is one.

        The ids come before those of the output. Raises `EngineDied` when the engine does.
        """
        bundle = self._bundles[queue.request_id] = _Bundle(queue)
        try:
            while True:
                await queue.ready.wait()
                queue.ready.clear()
                ids, bundle.ids = bundle.ids, []
                try:
                    output = queue.get_nowait()
                except Exception as error:
                    raise EngineDied("the engine process is gone") from error
                if ids or output is not None:
                    yield ids, output
                if output is not None and output.finished:
                    return
        finally:
            del self._bundles[queue.request_id]

    async def _run(self) -> None:
        try:
            while True:
                await self.take(await self._core.get_output_async())
        except Exception as error:  # noqa: BLE001 - every request is told, and the supervisor starts the engine again
            log.error("the engine's outputs ended: %s", type(error).__name__)
            self._processor.propagate_error(error)

    async def take(self, outputs: Any) -> None:
        """One step of the engine."""
        from vllm.v1.metrics.stats import IterationStats

        stats = IterationStats() if self._counts and outputs.outputs else None
        rest = self._bundle(outputs.outputs, outputs.timestamp, stats)
        extra = {"weight_version": outputs.weight_version} if hasattr(outputs, "weight_version") else {}
        for at in range(0, len(rest), SLICE):
            if at:
                await asyncio.sleep(0)
            done = self._processor.process_outputs(rest[at : at + SLICE], outputs.timestamp, stats, **extra)
            if done.reqs_to_abort:
                await self._core.abort_requests_async(done.reqs_to_abort)
        self._processor.update_scheduler_stats(outputs.scheduler_stats)
        if self._logger is not None:
            self._logger.record(
                engine_idx=outputs.engine_index,
                scheduler_stats=outputs.scheduler_stats,
                iteration_stats=stats,
                mm_cache_stats=self._renderer.stat_mm_cache(),
            )

    def _bundle(self, outputs: Sequence[Any], timestamp: float, stats: Any) -> list[Any]:
        """Adds plain outputs to their bundles, and wakes whose time has come. Returns the others."""
        rest: list[Any] = []
        bundles, states = self._bundles, self._processor.request_states
        now, pause = time.monotonic(), pause_s(len(self._bundles))
        for output in outputs:
            bundle = bundles.get(output.request_id)
            # What lies in the queue came first: until it is read, vLLM adds to it, in order.
            if bundle is None or bundle.queue.output is not None or not _is_plain(output):
                rest.append(output)
                continue
            state = bundle.state or states.get(output.request_id)
            if state is None or state.is_prefilling:
                rest.append(output)
                continue
            bundle.state = state
            bundle.ids += output.new_token_ids
            if stats is not None:
                stats.update_from_output(
                    output, timestamp, False, state.stats, self._processor.lora_states, state.lora_name
                )
            if now >= bundle.due:
                bundle.due = now + pause
                bundle.queue.ready.set()
        return rest


def _is_plain(output: Any) -> bool:
    """Token ids and nothing else."""
    return (
        output.finish_reason is None
        and output.new_logprobs is None
        and output.new_prompt_logprobs_tensors is None
        and output.events is None
        and not output.num_nans_in_logits
    )
