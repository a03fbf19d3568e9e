"""One chat turn, in order: the thought, within its budget, then the answer, within what is left.

A turn is one engine request as long as nothing interrupts the thought. It becomes two when the thought's budget is spent
(closed by us, and the answer still comes), or when the answer alone is constrained (a grammar must not bind the thought).
The second request's prompt is the first's plus what it wrote, which the prefix cache makes cheap; unlike the engine's own
thinking budget it works the same on every vLLM release and model runner.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field

from services.api.engine.base import (
    AdapterHandle,
    Engine,
    EngineDelta,
    EngineDied,
    GenerationRequest,
    Sampling,
    TokenAlternatives,
)
from services.api.events import (
    Answer,
    Event,
    Finished,
    FinishReason,
    ReasoningDone,
    TokenLogprob,
    TokenLogprobs,
    ToolCallDelta,
    Usage,
)
from services.api.safety.gate import SentenceGate
from services.api.safety.guard import TurnGuard
from services.api.thinking.options import ThinkingOptions
from services.api.thinking.splitter import Part, ReplySplitter
from services.api.thinking.stop_strings import StopStrings
from services.api.thinking.token_text import TokenTexts
from services.api.tools import ForcedCall, ForcedCallReader
from services.contract.chat_format import END_OF_TEXT, END_THINK, IM_END, THINK, TOOL_CALL, ChatFormat


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """A turn as the engine side needs it. `sampling.max_tokens` bounds thought and answer together."""

    request_id: str
    prompt_ids: Sequence[int]
    sampling: Sampling
    thinking: ThinkingOptions = field(default_factory=ThinkingOptions)
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    offers_tools: bool = False
    parallel_tool_calls: bool = True
    forced_call: ForcedCall | None = None
    choices: int = 1
    adapter: AdapterHandle | None = None
    cache_salt: str | None = None
    guard: TurnGuard | None = None


def reasoning_cap(max_tokens: int, budget: int | None, answer_reserve: int) -> int:
    """Most tokens of thought: the budget, and never the room that is kept for the answer (at most half of all)."""
    reserve = max(1, min(answer_reserve, max_tokens // 2))
    cap = max(0, max_tokens - reserve)
    return cap if budget is None else min(cap, budget)


class Turns:
    """Runs turns on one engine. Holds no state of a request."""

    def __init__(self, engine: Engine, chat_format: ChatFormat, texts: TokenTexts, answer_reserve: int) -> None:
        self._engine = engine
        self._chat_format = chat_format
        self._texts = texts
        self._answer_reserve = answer_reserve

    async def check(self, request: TurnRequest) -> None:
        """Raises `BadSampling` for what the engine would refuse later, when the thought is already on the wire."""
        if request.sampling.grammar is not None or request.forced_call is not None:
            sampling = _answer_sampling(request)
            await self._engine.check(GenerationRequest(request.request_id, request.prompt_ids, sampling))

    async def run(self, request: TurnRequest) -> AsyncGenerator[tuple[int, Event], None]:
        """Events of all choices, each with its choice's index; each choice ends with `Finished`.

        Closing the generator aborts what still runs in the engine. Raises what `Engine.generate` raises.
        """
        if request.choices == 1:
            async with contextlib.aclosing(self._run_choice(request, 0)) as events:
                async for event in events:
                    yield 0, event
            return
        queue: asyncio.Queue[tuple[int, Event] | BaseException | None] = asyncio.Queue()

        async def collect(index: int) -> None:
            try:
                async with contextlib.aclosing(self._run_choice(request, index)) as events:
                    async for event in events:
                        queue.put_nowait((index, event))
                queue.put_nowait(None)
            except Exception as error:  # noqa: BLE001 - handed to the consumer, who raises it
                queue.put_nowait(error)

        tasks = [asyncio.create_task(collect(index)) for index in range(request.choices)]
        try:
            running = len(tasks)
            while running:
                item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run_choice(self, request: TurnRequest, index: int) -> AsyncGenerator[Event, None]:
        """The choice's events; behind the guard, when there is one, only what it lets pass."""
        choice = _Choice(request, index, self._chat_format, self._texts, self._answer_reserve)
        if request.guard is None:
            async with contextlib.aclosing(self._generate(choice)) as events:
                async for event in events:
                    yield event
            return
        async with contextlib.aclosing(self._generate(choice)) as events:
            # The engine begins while the conversation is read; nothing that it says is taken before that is done.
            first = asyncio.ensure_future(anext(events))
            try:
                gate = await request.guard.gate()
            except BaseException:
                await _dropped(first)
                raise
            async with contextlib.aclosing(
                self._guarded(request.guard, index, gate, choice, first, events)
            ) as released:
                async for event in released:
                    yield event

    async def _guarded(
        self,
        guard: TurnGuard,
        index: int,
        gate: SentenceGate,
        choice: _Choice,
        first: asyncio.Future[Event],
        events: AsyncGenerator[Event, None],
    ) -> AsyncGenerator[Event, None]:
        """What `gate` lets pass of `events`, of which `first` is already asked for."""
        complete = False
        try:
            if not gate.is_blocked:
                event = await first
                while not isinstance(event, Finished):
                    for released in gate.take(event):
                        yield released
                    if gate.is_blocked:
                        break
                    event = await anext(events)
            if gate.is_blocked:
                await _dropped(first)
                await events.aclose()
            for released in gate.flush():
                yield released
            await guard.second_opinion(index, gate)
            last = list(gate.take(choice.finished()))
            complete = True
            for released in last:
                yield released
        finally:
            guard.close(index, gate, complete)
            await _dropped(first)

    async def _generate(self, choice: _Choice) -> AsyncGenerator[Event, None]:
        """What the model says. Closing it aborts the engine's request."""
        for phase in (choice.thinking_phase, choice.answer_phase):
            generation = phase()
            if generation is None:
                continue
            async with contextlib.aclosing(self._engine.generate(generation)) as deltas:
                async for delta in deltas:
                    for event in choice.take(delta):
                        yield event
                    if choice.phase_over:
                        break
            for event in choice.end_phase():
                yield event
            if choice.finish is not None:
                break
        yield choice.finished()


async def _dropped(first: asyncio.Future[Event]) -> None:
    """Nobody waits for it any more: cancelled if it has not come, and whatever it raised is not missed."""
    first.cancel()
    await asyncio.wait([first])
    if not first.cancelled():
        first.exception()


def _answer_sampling(request: TurnRequest) -> Sampling:
    grammar = request.forced_call.grammar if request.forced_call else request.sampling.grammar
    return dataclasses.replace(request.sampling, grammar=grammar)


def _signed_64(seed: int) -> int:
    """The largest seed plus one is the smallest: engines take no more than 64 bits."""
    return (seed + 2**63) % 2**64 - 2**63


def _new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class _Choice:
    """One choice's way through thought and answer."""

    def __init__(
        self, request: TurnRequest, index: int, chat_format: ChatFormat, texts: TokenTexts, answer_reserve: int
    ) -> None:
        self._request = request
        self._index = index
        self._format = chat_format
        self._texts = texts
        thinking = request.thinking
        self._cap = reasoning_cap(request.sampling.max_tokens, thinking.budget, answer_reserve)
        self._thinks = thinking.enabled and self._cap > 0
        opening = chat_format.write_reply_opening(self._thinks)
        self._prompt: list[int] = [*request.prompt_ids, *opening]
        self._prompt_tokens = len(self._prompt)
        self._answer_constrained = request.sampling.grammar is not None or request.forced_call is not None
        self._splitter = self._new_splitter(Part.START if self._thinks else Part.ANSWER)
        self._stop = StopStrings(request.stop, request.include_stop)
        self._forced = ForcedCallReader(request.forced_call, _new_call_id) if request.forced_call else None
        control = chat_format.control_ids
        self._think = control[THINK]
        self._end_ids = {control[IM_END], control[END_OF_TEXT]}
        self._closing = {control[END_THINK], *([control[TOOL_CALL]] if request.offers_tools else [])}
        self._frame = set(control.values()) - self._closing  # before a thought the splitter passes over these
        # The client's stop tokens, like its stop strings, are not shown. Such a token is always the last of its delta.
        self._hidden = set() if request.include_stop else set(request.sampling.stop_token_ids)
        self._held_logprobs: list[TokenLogprobs] = []
        self._phase = 0
        self._used = 0
        self._reasoning_tokens = 0
        self._cached_tokens = 0
        self._calls = 0
        self._truncated = thinking.enabled and not self._thinks
        self._last: EngineDelta | None = None
        self.phase_over = False
        self.finish: FinishReason | None = None
        self._stop_reason: str | int | None = None

    def thinking_phase(self) -> GenerationRequest | None:
        """The request that thinks, and goes on to answer when nothing forbids it; `None` with thinking off."""
        if not self._thinks:
            return None
        sampling = dataclasses.replace(self._request.sampling, grammar=None)
        if self._answer_constrained:
            stops = (*sampling.stop_token_ids, self._format.control_ids[END_THINK])
            sampling = dataclasses.replace(sampling, stop_token_ids=stops)
        return self._generation(sampling)

    def answer_phase(self) -> GenerationRequest | None:
        """The request that answers alone; follows a thought that was closed, or stands first with thinking off."""
        left = self._request.sampling.max_tokens - self._used
        if left < 1:
            self.finish = "length"
            return None
        sampling = _answer_sampling(self._request)
        min_tokens = max(0, sampling.min_tokens - self._used)
        return self._generation(dataclasses.replace(sampling, max_tokens=left, min_tokens=min_tokens))

    def _generation(self, sampling: Sampling) -> GenerationRequest:
        self._phase += 1
        self.phase_over = False
        if sampling.seed is not None:
            sampling = dataclasses.replace(sampling, seed=_signed_64(sampling.seed + self._index))
        engine_id = f"{self._request.request_id}-{self._index}-{self._phase}"
        return GenerationRequest(
            engine_id, list(self._prompt), sampling, adapter=self._request.adapter, cache_salt=self._request.cache_salt
        )

    def take(self, delta: EngineDelta) -> Iterator[Event]:
        """Events of one delta. Sets `phase_over` when the engine need not go on."""
        self._last = delta
        self._cached_tokens = max(self._cached_tokens, delta.cached_tokens) if self._phase == 1 else self._cached_tokens
        ids = self._within_budget(delta.token_ids)
        logprobs = [self._logprobs(i, at) for i, at in zip(ids, delta.logprobs, strict=False)] if delta.logprobs else []
        self.phase_over = len(ids) < len(delta.token_ids)
        # Where a reply may end inside a delta, ids are taken one by one: no token behind its end is shown or counted.
        step = 1 if self._request.stop or not self._request.parallel_tool_calls else max(1, len(ids))
        for at in range(0, len(ids), step):
            taken = ids[at : at + step]
            self._used += len(taken)
            self._prompt += taken
            shown = taken[:-1] if taken[-1] in self._hidden else taken
            yield from self._shown(self._splitter.feed(shown, logprobs[at : at + step]))
            if self.finish is not None:
                return

    def _within_budget(self, ids: Sequence[int]) -> Sequence[int]:
        """`ids` up to the end of the thought's budget; a thought that closes itself in time is left alone."""
        splitter = self._splitter
        if splitter.part not in (Part.START, Part.REASONING):
            return ids
        left = self._cap - splitter.reasoning_tokens
        thinks = splitter.part is Part.REASONING
        if thinks and len(ids) <= left:
            return ids
        for n, token_id in enumerate(ids):
            if not thinks and token_id != self._think:
                if self._answer_constrained:  # no thought at all: the answer begins again, constrained
                    return ids[:n]
                if token_id in self._frame:
                    continue
                return ids
            thinks = True
            if token_id in self._closing:
                return ids
            if left == 0:
                return ids[:n]
            left -= 1
        return ids

    def _shown(self, events: Sequence[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Answer):
                if self._forced is not None:
                    self._forced.feed(event.text)
                    continue
                text = self._stop.feed(event.text)
                self._held_logprobs += event.logprobs
                if text:
                    yield self._answer(text)
                if self._stop.matched is not None:
                    self.finish, self._stop_reason, self.phase_over = "stop", self._stop.matched, True
                    return
            elif isinstance(event, ToolCallDelta):
                if event.index and not self._request.parallel_tool_calls:
                    self.finish, self.phase_over = "tool_calls", True
                    return
                self._calls = max(self._calls, event.index + 1)
                yield event
            else:
                yield event

    def _answer(self, text: str) -> Answer:
        """Text and the logprobs of its tokens, those included that waited while it might have become a stop string."""
        logprobs, self._held_logprobs = tuple(self._held_logprobs), []
        return Answer(text, logprobs)

    def end_phase(self) -> Iterator[Event]:
        """Closes a thought that was cut, or the turn when the model has ended it."""
        self._reasoning_tokens += self._splitter.reasoning_tokens
        if self.finish is not None:
            return
        last = self._last
        reason = last.finish_reason if last else None
        if reason == "error" or (last is None) or (reason is None and not self.phase_over):
            raise EngineDied("the engine ended a request without finishing it")
        if reason == "abort" and not self.phase_over:
            self.finish = "abort"
            return
        if self._phase == 1 and self._thinks and self._thought_is_open(last):
            yield from self._close_thought()
            return
        if self._phase == 1 and self._thinks and self._waits_for_constraint(last):
            self._prompt += self._format.encode_text("\n\n")
            self._splitter = self._new_splitter(Part.ANSWER)
            return
        yield from self._shown(self._splitter.end())
        if self.finish is None:
            yield from self._end_answer("length" if reason == "length" else "stop", last.stop_reason)

    def _thought_is_open(self, last: EngineDelta) -> bool:
        """Cut by its budget, or ended by the model in mid-thought: either way the reader is owed an answer."""
        thinking = self._splitter.part in (Part.START, Part.REASONING)
        stopped_by_client = last.stop_reason in self._request.sampling.stop_token_ids
        return thinking and (self.phase_over or (last.finish_reason == "stop" and not stopped_by_client))

    def _waits_for_constraint(self, last: EngineDelta) -> bool:
        return self._answer_constrained and last.stop_reason == self._format.control_ids[END_THINK]

    def _close_thought(self) -> Iterator[Event]:
        self._truncated = self._splitter.part is Part.REASONING
        while self._prompt[-1] in self._end_ids:
            self._prompt.pop()
        newline, close = self._format.encode_text("\n"), self._format.control_ids[END_THINK]
        if self._splitter.part is Part.START:  # ended at once, without a thought
            self._prompt += self._format.write_reply_opening(False)[len(self._format.write_reply_opening(True)) :]
        else:
            self._prompt += [*newline, close, *self._format.encode_text("\n\n")]
        if self._splitter.has_reasoning:
            yield ReasoningDone(truncated=True)
        self._splitter = self._new_splitter(Part.ANSWER)

    def _end_answer(self, reason: FinishReason, stop_reason: str | int | None) -> Iterator[Event]:
        if held := self._stop.end():
            yield self._answer(held)
        if self._forced is not None:
            yield from self._forced.end()
            self._calls = self._forced.calls
        named = self._request.forced_call is not None and self._request.forced_call.name is not None
        self.finish = "tool_calls" if self._calls and reason == "stop" and not named else reason
        # The end-of-turn token is the ordinary end, not a stop that the client asked for.
        self._stop_reason = None if stop_reason in self._end_ids else stop_reason

    def finished(self) -> Finished:
        usage = Usage(self._prompt_tokens, self._used, self._reasoning_tokens, self._cached_tokens)
        return Finished(self.finish or "stop", usage, stop_reason=self._stop_reason, thinking_truncated=self._truncated)

    def _new_splitter(self, start: Part) -> ReplySplitter:
        return ReplySplitter(
            self._format.control_ids,
            self._texts.detokenizer,
            start=start,
            tools=self._request.offers_tools,
            new_call_id=_new_call_id,
        )

    def _logprobs(self, token_id: int, at: TokenAlternatives) -> TokenLogprobs:
        wanted = self._request.sampling.logprobs or 0
        top = tuple(self._logprob(i, p) for i, p in at.top[:wanted])
        return TokenLogprobs(self._logprob(token_id, at.sampled), top)

    def _logprob(self, token_id: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(token_id, logprob, self._texts.shown(token_id), self._texts.raw(token_id))
