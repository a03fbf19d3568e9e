"""A scripted engine: it writes the ids it was given, and keeps vLLM's rules about limits, stops, aborts and death.

It stands in for vLLM's `AsyncLLM` and for nothing of ours. What it does not know, it records: the test looks at `requests`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from services.api.engine.base import (
    AdapterHandle,
    AdapterRefused,
    BadSampling,
    EngineDelta,
    EngineDied,
    EngineState,
    GenerationRequest,
    ModelInfo,
    TokenAlternatives,
)
from services.api.events import Answer, Event, Reasoning
from services.contract.chat_format import END_OF_TEXT, END_THINK, IM_END, THINK, ChatFormat

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "deploy" / "demo"
JSON_TYPES = {"object", "array", "string", "number", "integer", "boolean", "null"}


@dataclass(frozen=True)
class Pen:
    """Writes replies as a model would: every string is encoded by itself, every control token is named."""

    chat_format: ChatFormat

    def write(self, *parts: str) -> list[int]:
        """`pen.write(THINK, "\\nwhy\\n", END_THINK, "\\n\\n", "so", IM_END)`; a part that is no control token is text."""
        control = self.chat_format.control_ids
        return [i for part in parts for i in ([control[part]] if part in control else self.text(part))]

    def text(self, text: str) -> list[int]:
        return self.chat_format.encode_text(text)

    def thought(self, reasoning: str, answer: str) -> list[int]:
        """A whole reply that thinks, then answers, then ends."""
        return self.write(THINK, f"\n{reasoning}\n", END_THINK, "\n\n", answer, IM_END)

    def answer(self, answer: str) -> list[int]:
        return self.write(answer, IM_END)

    def ids(self, *names: str) -> list[int]:
        return [self.chat_format.control_ids[name] for name in names]


def joined(events: Sequence[Event]) -> list[Event]:
    """Neighbouring texts as one event: what must not depend on chunking."""
    found: list[Event] = []
    for event in events:
        before = found[-1] if found else None
        if isinstance(event, Reasoning) and isinstance(before, Reasoning):
            found[-1] = Reasoning(before.text + event.text)
        elif isinstance(event, Answer) and isinstance(before, Answer):
            found[-1] = Answer(before.text + event.text, before.logprobs + event.logprobs)
        else:
            found.append(event)
    return found


def demo_chat_format() -> ChatFormat:
    return ChatFormat.load(DEMO, Tokenizer.from_str)


Reply = Sequence[int] | Callable[[GenerationRequest], Sequence[int]]


@dataclass
class FakeEngine:
    """An `Engine` whose model writes `reply`; and, once the prompt holds a closed thought, `answer`.

    A script without `<|im_end|>` never ends by itself: its last token goes on until a limit. `answer` left out: what
    stands behind `</think>` in `reply`. `sizes` are the lengths of the deltas, in turn.
    """

    chat_format: ChatFormat
    reply: Reply
    answer: Reply | None = None
    sizes: Sequence[int] = (1,)
    delay_s: float = 0.0
    first_delay_s: float = 0.0
    dies_after: int | None = None
    start_errors: list[Exception] = field(default_factory=list)
    start_gate: asyncio.Event | None = None
    max_model_len: int = 2048
    merge_finish: bool = True  # whether the finish reason comes with the last ids or in an empty delta of its own
    broken_adapters: set[str] = field(default_factory=set)  # `name@version` that cannot be loaded
    adapter_s: float = 0.0  # how long loading and unloading take

    def __post_init__(self) -> None:
        self._state: EngineState = "stopped"
        self.requests: list[GenerationRequest] = []
        self.checked: list[GenerationRequest] = []
        self.aborted: list[str] = []
        self.finished: list[str] = []
        self.running: set[str] = set()
        self.most_running = 0
        self.starts = 0
        self.stops = 0
        self.adapters: dict[int, AdapterHandle] = {}  # loaded now, by engine id
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.unload_errors: list[Exception] = []
        self.most_adapters = 0
        self.raised: Exception | None = None
        names = self.chat_format.control_ids
        self._eos, self._other_end = names[IM_END], names[END_OF_TEXT]
        self._end_think = names[END_THINK]
        self._filler = self.chat_format.encode_text("嗯")[-1:]

    # The engine's life

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def info(self) -> ModelInfo:
        if not self.starts:
            raise RuntimeError("the engine has not been started")
        return ModelInfo(self.max_model_len, 6144, "fake", "none")

    async def start(self) -> None:
        self._state = "starting"
        self.starts += 1
        self.adapters.clear()
        await asyncio.sleep(0)
        if self.start_gate is not None:
            await self.start_gate.wait()
        if self.start_errors:
            self._state = "stopped"
            raise self.start_errors.pop(0)
        self._state = "ready"

    async def stop(self) -> None:
        self.stops += 1
        self._state = "stopped"

    def die(self) -> None:
        self._state = "dead"

    async def load_adapter(self, adapter: AdapterHandle) -> None:
        self._require_life()
        self.loads.append(adapter.name)
        await asyncio.sleep(self.adapter_s)
        self._require_life()
        if adapter.name in self.broken_adapters or not os.listdir(adapter.folder):
            raise AdapterRefused(f"Call to add_lora method failed: {adapter.name}")
        self.adapters[adapter.engine_id] = adapter
        self.most_adapters = max(self.most_adapters, len(self.adapters))

    async def unload_adapter(self, adapter: AdapterHandle) -> None:
        self._require_life()
        self.unloads.append(adapter.name)
        await asyncio.sleep(self.adapter_s)
        if self.unload_errors:
            raise self.unload_errors.pop(0)
        self.adapters.pop(adapter.engine_id, None)

    def _require_life(self) -> None:
        if self._state != "ready":
            raise EngineDied(f"the engine is {self._state}")

    # Generating

    @property
    def asked(self) -> list[GenerationRequest]:
        """Requests of clients: warm-ups left out."""
        return [r for r in self.requests if not r.request_id.startswith("warm-up")]

    async def check(self, request: GenerationRequest) -> None:
        self.checked.append(request)
        self._refuse(request)

    def _refuse(self, request: GenerationRequest) -> None:
        if len(request.prompt_ids) >= self.max_model_len:
            raise BadSampling(f"the prompt has {len(request.prompt_ids)} tokens, the model takes {self.max_model_len}")
        grammar = request.sampling.grammar
        if grammar is None:
            return
        if grammar.kind == "regex":
            try:
                re.compile(grammar.value)
            except re.error as error:
                raise BadSampling(f"the regex is broken: {error}") from error
        if grammar.kind == "json_schema" and grammar.value.get("type", "object") not in JSON_TYPES:
            raise BadSampling(f"the schema is broken: no type {grammar.value['type']!r}")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[EngineDelta, None]:
        self._require_life()
        if request.request_id in self.running:
            raise AssertionError(f"the request id {request.request_id} is running already")
        self._refuse(request)
        self.requests.append(request)
        self.running.add(request.request_id)
        self.most_running = max(self.most_running, len(self.running))
        try:
            async for delta in self._deltas(request):
                if delta.finish_reason is not None:
                    self.finished.append(request.request_id)
                yield delta
        finally:
            self.running.discard(request.request_id)
            if request.request_id not in self.finished:
                self.aborted.append(request.request_id)

    async def _deltas(self, request: GenerationRequest) -> AsyncGenerator[EngineDelta, None]:
        ids, reason, stop_reason = self._sampled(request)
        sizes = itertools.cycle(self.sizes)
        at = 0
        await asyncio.sleep(self.first_delay_s)
        while at < len(ids):
            await asyncio.sleep(self.delay_s)
            if self.raised is not None:
                raise self.raised
            if self.dies_after is not None and at >= self.dies_after:
                self.die()
            if request.adapter is not None and request.adapter.engine_id not in self.adapters:
                self.die()  # as vLLM does when it finds no files for an adapter that it has to load in mid-step
            if self._state != "ready":
                raise EngineDied("the engine process is gone")
            new = ids[at : at + next(sizes)]
            at += len(new)
            last = at >= len(ids)
            if last and not self.merge_finish:
                yield EngineDelta(new, self._logprobs(request, new), cached_tokens=7)
                new = []
            yield EngineDelta(
                new,
                self._logprobs(request, new),
                finish_reason=reason if last else None,
                stop_reason=stop_reason if last else None,
                cached_tokens=7,
            )

    def _script(self, request: GenerationRequest) -> list[int]:
        prompt = list(request.prompt_ids)
        opening = self.chat_format.control_ids["<|im_start|>"]
        last_turn = prompt[len(prompt) - prompt[::-1].index(opening) :]
        closed = self._end_think in last_turn
        chosen = self.reply
        if closed and self.answer is not None:
            chosen = self.answer
        script = list(chosen(request) if callable(chosen) else chosen)
        if closed and self.answer is None and self._end_think in script:
            script = script[script.index(self._end_think) + 1 :]
        return script

    def _sampled(self, request: GenerationRequest) -> tuple[list[int], Any, int | None]:
        """The ids that vLLM would give out for this script, and why they end: its order of checks is kept."""
        sampling, room = request.sampling, self.max_model_len - len(request.prompt_ids)
        limit = min(sampling.max_tokens, room)
        ids: list[int] = []
        for token_id in self._endless(self._script(request)):
            ends = token_id in (self._eos, self._other_end, *sampling.stop_token_ids)
            if ends and len(ids) < sampling.min_tokens:
                token_id = self._filler[0]  # vLLM masks the ends until then
                ends = False
            ids.append(token_id)
            if token_id in (self._eos, self._other_end) and not sampling.ignore_eos:
                # The config's second end token comes with its id as stop reason, the first without.
                return ids, "stop", None if token_id == self._eos else token_id
            if ends and token_id in sampling.stop_token_ids:
                return ids, "stop", token_id
            if len(ids) >= limit:
                return ids, "length", None
        raise AssertionError("unreachable: a script never runs dry")

    def _endless(self, script: list[int]) -> Iterator[int]:
        return itertools.chain(script, itertools.repeat(script[-1] if script else self._filler[0]))

    def _logprobs(self, request: GenerationRequest, ids: Sequence[int]) -> tuple[TokenAlternatives, ...]:
        wanted = request.sampling.logprobs
        if wanted is None:
            return ()
        best = [(5, -2.0), (6, -3.0), (7, float("-inf"))]
        return tuple(TokenAlternatives(-0.25, ((i, -0.25), *best[: max(0, wanted - 1)])) for i in ids)
