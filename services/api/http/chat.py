"""POST /v1/chat/completions: wire to turn, events to wire, and what is counted on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from services.api.adapters.registry import AdapterRegistry, Lease
from services.api.engine.admission import Admission
from services.api.engine.base import BadSampling, Engine, EngineDied
from services.api.engine.supervisor import Supervisor
from services.api.errors import ApiError, EngineUnavailable, InvalidRequest, ShuttingDown
from services.api.events import Event, Finished
from services.api.http.body import read_model
from services.api.http.chat_request import build_turn, read_messages, tool_specs
from services.api.http.chunks import AdapterUsed, ChunkWriter, CollectedChoice, Head, completion_json
from services.api.http.deltas import ChoicePresenter
from services.api.http.models import ModelNames
from services.api.http.schemas import ChatRequest
from services.api.http.sse import EventStreamResponse, JsonTurnResponse, internal_error
from services.api.logs import fields
from services.api.metrics import Metrics
from services.api.prompt import PromptBuilder
from services.api.safety.guard import Guard, Question, TurnGuard
from services.api.thinking.options import ThinkingOptions
from services.api.thinking.present import Annotator
from services.api.turn import TurnRequest, Turns
from services.contract.chat_format import Message

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChatDoor:
    """Everything the route needs, built once by the app."""

    engine: Engine
    supervisor: Supervisor
    admission: Admission
    registry: AdapterRegistry | None
    names: ModelNames
    prompts: PromptBuilder
    turns: Turns
    guard: Guard
    annotator: Annotator
    metrics: Metrics
    sampling_defaults: Mapping[str, Any]
    max_body_bytes: int
    keep_alive_s: float

    async def open(self, request: Request) -> Response:
        """Reads the request; the turn is built and run inside the response, which watches the client."""
        wire = await read_model(request, ChatRequest, self.max_body_bytes)
        self.names.require(wire.model)
        run = _Run(self, wire)
        if wire.stream:
            return EventStreamResponse(run.frames, run.to_error, run.gone, self.keep_alive_s)
        return JsonTurnResponse(run.collect, run.to_error, run.gone)


class _Run:
    """One request's turn: built, its events presented, counted and logged."""

    def __init__(self, door: ChatDoor, wire: ChatRequest) -> None:
        self._door = door
        self._wire = wire
        self._choices = wire.n or 1
        self._head = Head(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), wire.model or door.names.default)
        self._options = ThinkingOptions()
        self._presenters: list[ChoicePresenter] = []
        self._adapter: AdapterUsed | None = None
        self._finished: list[Finished] = []
        self._begun = time.monotonic()

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """SSE frames of the turn, without the closing [DONE]."""
        options = self._wire.stream_options
        with_usage = bool(options and options.include_usage)
        writer = ChunkWriter(self._head, with_usage)
        roles = set[int]()
        async with contextlib.aclosing(self._events()) as events:
            async for index, event in events:
                if index not in roles:
                    roles.add(index)
                    yield writer.role(index)
                for delta in self._presenters[index].take(event):
                    yield writer.delta(index, delta)
                if isinstance(event, Finished):
                    yield writer.finish(index, event, self._adapter)
        if with_usage:
            yield writer.usage(self._finished)

    async def collect(self) -> Mapping[str, Any]:
        """The whole turn as one `chat.completion`."""
        choices = [CollectedChoice() for _ in range(self._choices)]
        async with contextlib.aclosing(self._events()) as events:
            async for index, event in events:
                for delta in self._presenters[index].take(event):
                    choices[index].add(delta)
                if isinstance(event, Finished):
                    choices[index].finished = event
        shown, logprobs = self._options.shown, bool(self._wire.logprobs)
        return completion_json(self._head, choices, shown, logprobs, self._adapter)

    async def _events(self) -> AsyncGenerator[tuple[int, Event], None]:
        door, metrics = self._door, self._door.metrics
        with door.admission.admit(self._choices):
            door.supervisor.require_ready()
            # The lease spans the whole turn: a version that is replaced meanwhile stays loaded to its end.
            async with self._lease() as lease:
                turn = self._build(lease)
                await door.turns.check(turn)
                first = True
                async with contextlib.aclosing(door.turns.run(turn)) as events:
                    async for index, event in events:
                        if first:
                            metrics.first_token_s.observe(time.monotonic() - self._begun)
                            first = False
                        if isinstance(event, Finished):
                            self._count(event)
                        yield index, event
        self._log_end()

    @contextlib.asynccontextmanager
    async def _lease(self) -> AsyncIterator[Lease | None]:
        model, registry = self._wire.model, self._door.registry
        if model is None or registry is None or self._door.names.is_base(model):
            yield None
            return
        async with registry.lease(model) as lease:
            self._adapter = AdapterUsed(lease.name, lease.version)
            yield lease

    def _build(self, lease: Lease | None) -> TurnRequest:
        door, wire, info = self._door, self._wire, self._door.engine.info
        messages = read_messages(wire.messages)
        system_prompt = lease.system_prompt if lease else None
        prompt_ids = door.prompts.build(messages, tool_specs(wire), info.max_model_len, system_prompt)
        room = door.prompts.room(prompt_ids, info.max_model_len)
        turn = build_turn(wire, self._head.id, messages, prompt_ids, room, info.vocab_size, door.sampling_defaults)
        self._options = turn.thinking
        self._presenters = [ChoicePresenter(turn.thinking, door.annotator) for _ in range(turn.choices)]
        guard = self._guard(turn, messages, door.prompts.system_prompt(messages, system_prompt))
        return dataclasses.replace(turn, adapter=lease.handle if lease else None, guard=guard)

    def _guard(self, turn: TurnRequest, messages: Sequence[Message], system_prompt: str | None) -> TurnGuard | None:
        question = Question(
            request_id=self._head.id,
            messages=[(m.role, m.content) for m in messages if m.role in ("user", "assistant")],
            system_prompt=system_prompt,
            streaming=bool(self._wire.stream),
            amends_text=turn.sampling.grammar is None and turn.forced_call is None,
            shows_reasoning=turn.thinking.shown,
        )
        return self._door.guard.open(question)

    def _count(self, finished: Finished) -> None:
        metrics, usage = self._door.metrics, finished.usage
        self._finished.append(finished)
        metrics.reasoning_tokens.inc(usage.reasoning_tokens)
        metrics.answer_tokens.inc(usage.completion_tokens - usage.reasoning_tokens)
        metrics.thinking_truncated.inc(finished.thinking_truncated)
        metrics.finished.labels(finish_reason=finished.reason).inc()

    def _log_end(self) -> None:
        seconds = time.monotonic() - self._begun
        self._door.metrics.turn_s.labels(stream=str(bool(self._wire.stream)).lower()).observe(seconds)
        usages = [f.usage for f in self._finished]
        log.info(
            "turn done",
            extra=fields(
                response_id=self._head.id,
                adapter=f"{self._adapter.name}@{self._adapter.version}" if self._adapter else None,
                seconds=round(seconds, 3),
                prompt_tokens=usages[0].prompt_tokens if usages else 0,
                reasoning_tokens=sum(u.reasoning_tokens for u in usages),
                completion_tokens=sum(u.completion_tokens for u in usages),
                finish_reason=",".join(f.reason for f in self._finished),
            ),
        )

    def to_error(self, error: Exception) -> ApiError:
        """What the client is told about anything that the turn raised."""
        known = self._known(error)
        self._door.metrics.errors.labels(code=known.code).inc()
        return known

    def _known(self, error: Exception) -> ApiError:
        if isinstance(error, ApiError):
            return error
        if isinstance(error, BadSampling):
            return InvalidRequest(str(error))
        if isinstance(error, EngineDied) and not self._door.admission.is_open:
            return ShuttingDown("the server was shut down while this reply was written: retry on another replica")
        if isinstance(error, EngineDied):
            return EngineUnavailable(
                "the engine stopped while this reply was written and is restarted: retry in a few seconds"
            )
        return internal_error(error)

    def gone(self) -> None:
        self._door.metrics.disconnects.inc()
        log.info("client left, turn aborted", extra=fields(response_id=self._head.id))


def chat_router(door: ChatDoor) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", summary="One chat turn, thought and answer", operation_id="chat")
    async def chat(request: Request) -> Response:
        return await door.open(request)

    return router
