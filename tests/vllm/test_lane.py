"""The lean lane over vLLM's output processor: whatever the steps and however late the reader, no token is lost or moved."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.api.engine.base import EngineDied
from services.api.engine.lane import ALONE, LONGEST_PAUSE_S, LeanLane, pause_s

pytestmark = pytest.mark.vllm

REPLIES = st.lists(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=3), max_size=12), min_size=1, max_size=4)


class Steps:
    """An engine's outputs, as a test gives them."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()

    async def get_output_async(self) -> Any:
        found = await self.queue.get()
        if isinstance(found, Exception):
            raise found
        return found

    async def abort_requests_async(self, ids: Any) -> None: ...


def lane_over(steps: Steps, counts: bool = True) -> tuple[LeanLane, Any]:
    from vllm.v1.engine.output_processor import OutputProcessor

    processor = OutputProcessor(None, log_stats=counts)
    records: list[Any] = []
    llm = SimpleNamespace(
        engine_core=steps, output_processor=processor, log_stats=counts, output_handler=None, records=records,
        renderer=SimpleNamespace(stat_mm_cache=lambda: None),
        logger_manager=SimpleNamespace(record=lambda **given: records.append(given)),
    )  # fmt: skip
    return LeanLane(llm), llm


def added(processor: Any, name: str, logprobs: int | None = None) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.output_processor import RequestOutputCollector

    params = SamplingParams(max_tokens=99, detokenize=False, output_kind=RequestOutputKind.DELTA, logprobs=logprobs)
    request = EngineCoreRequest(
        request_id=name, prompt_token_ids=[1], mm_features=None, sampling_params=params, pooling_params=None,
        arrival_time=0.0, lora_request=None, cache_salt=None, data_parallel_rank=None, external_req_id=name,
    )  # fmt: skip
    queue = RequestOutputCollector(RequestOutputKind.DELTA, name)
    processor.add_request(request, None, None, 0, queue)
    return queue


def step(replies: list[list[list[int]]], at: int) -> Any:
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

    outputs = [
        EngineCoreOutput(str(n), list(reply[at]), finish_reason=FinishReason.LENGTH if at == len(reply) - 1 else None)
        for n, reply in enumerate(replies)
        if at < len(reply)
    ]
    return EngineCoreOutputs(outputs=outputs)


async def read_all(lane: LeanLane, queue: Any, lag: int) -> tuple[list[int], list[Any]]:
    ids, reasons = [], []
    async for bundle, output in lane.read(queue):
        ids += bundle
        if output is not None:
            ids += output.outputs[0].token_ids
            reasons.append(output.outputs[0].finish_reason)
        for _ in range(lag):
            await asyncio.sleep(0)
    return ids, reasons


@given(replies=REPLIES, lags=st.lists(st.integers(0, 6), min_size=4, max_size=4), pause=st.sampled_from([0.0, 9.0]))
@settings(deadline=None, max_examples=60)
def test_every_token_arrives_once_and_in_order(replies: Any, lags: list[int], pause: float) -> None:
    replies = [reply for reply in replies if reply] or [[[1]]]

    async def run() -> None:
        steps = Steps()
        lane, llm = lane_over(steps)
        lane.install(llm)
        queues = [added(llm.output_processor, str(n)) for n in range(len(replies))]
        readers = [asyncio.create_task(read_all(lane, q, lag)) for q, lag in zip(queues, lags, strict=False)]
        for _ in range(lags[3]):
            await asyncio.sleep(0)  # readers that are there before the first token, or after it
        for at in range(max(map(len, replies))):
            steps.queue.put_nowait(step(replies, at))
            for _ in range(lags[at % 4]):
                await asyncio.sleep(0)
        found = await asyncio.wait_for(asyncio.gather(*readers), 10)
        for reply, (ids, reasons) in zip(replies, found, strict=True):
            assert ids == [token for part in reply for token in part]
            assert [r for r in reasons if r] == ["length"]
        assert not llm.output_processor.request_states
        counted = sum(r["iteration_stats"].num_generation_tokens for r in llm.records)
        assert counted == sum(len(part) for reply in replies for part in reply)
        llm.output_handler.cancel()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.api.engine.lane.pause_s", lambda running: pause)
        asyncio.run(run())


async def test_a_dead_engine_ends_every_reader() -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    steps = Steps()
    lane, llm = lane_over(steps)
    lane.install(llm)
    queues = [added(llm.output_processor, str(n)) for n in range(3)]
    readers = [asyncio.create_task(read_all(lane, queue, 0)) for queue in queues]
    steps.queue.put_nowait(step([[[1], [2]]] * 3, 0))
    await asyncio.sleep(0)
    steps.queue.put_nowait(EngineDeadError())
    found = await asyncio.wait_for(asyncio.gather(*readers, return_exceptions=True), 10)
    assert [type(error) for error in found] == [EngineDied] * 3
    assert llm.output_handler.done()


def test_few_requests_never_wait_and_many_wait_little() -> None:
    assert pause_s(1) == pause_s(ALONE) == 0.0
    pauses = [pause_s(n) for n in range(1, 2000)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_S
