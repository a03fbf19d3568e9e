"""One request's turn, whatever its wire format: admitted, remembered, built, run, counted, logged."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.api.adapters.registry import AdapterRegistry, Lease
from services.api.audit import trail as trails
from services.api.engine.admission import Admission
from services.api.engine.base import BadSampling, Engine, EngineDied
from services.api.engine.supervisor import Supervisor
from services.api.errors import ApiError, ContradictoryParameters, EngineUnavailable, InvalidRequest, ShuttingDown
from services.api.events import Answer, Event, Finished, Reasoning, ReasoningDone, Replaced, ToolCallDelta
from services.api.http.chat_request import build_turn, read_messages, reply_tokens, thinking_options, tool_specs
from services.api.http.chunks import AdapterUsed, Head, SessionUsed
from services.api.http.deltas import ChoicePresenter
from services.api.http.models import ModelNames
from services.api.http.schemas import ChatRequest
from services.api.http.session_errors import to_api_error
from services.api.http.sse import internal_error
from services.api.logs import fields
from services.api.memory.conversation import Conversation
from services.api.memory.conversations import Memory
from services.api.memory.errors import SessionChanged, SessionError
from services.api.memory.records import Turn
from services.api.memory.tenancy import ANONYMOUS, cache_salt
from services.api.metrics import Metrics
from services.api.prompt import PromptBuilder
from services.api.safety.guard import Guard, Question, TurnGuard
from services.api.thinking.options import ThinkingOptions
from services.api.thinking.present import Annotator
from services.api.turn import TurnRequest, Turns
from services.contract.chat_format import Message

log = logging.getLogger(__name__)

_BEGIN_TRIES = 4  # what we remember may be old, and another replica may be quicker between our look and our word


@dataclass(frozen=True, slots=True)
class ChatDoor:
    """Everything that a turn needs, built once by the app. `memory` is `None` on a server that keeps no sessions."""

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
    memory: Memory | None = None
    cache_secret: bytes = b""


@dataclass(frozen=True, slots=True)
class Remembered:
    """A request's place in the memory. `stores` false: the history is read, and nothing of this turn is kept."""

    conversation: contextlib.AbstractAsyncContextManager[Conversation | None]
    stores: bool = True
    instructions: str | None = None  # system prompt of this turn alone
    idempotency_key: str | None = None
    request_hash: str = ""


class Run:
    """One request's turn. `presenters` turn its events into deltas; the rest is known once `events` has begun."""

    def __init__(
        self, door: ChatDoor, wire: ChatRequest, head: Head, tenant: str, remembered: Remembered | None = None
    ) -> None:
        self.head = head
        self.options = ThinkingOptions()
        self.presenters: list[ChoicePresenter] = []
        self.adapter: AdapterUsed | None = None
        self.session: SessionUsed | None = None
        self.finished: list[Finished] = []
        self._door = door
        self._wire = wire
        self._tenant = tenant
        self._remembered = remembered
        self._dropped = 0
        self._begun = time.monotonic()
        self._trail = trails.current()
        self._trail.model = head.model if door.names.is_base(head.model) else door.names.default

    def rename(self, response_id: str) -> None:
        """For who learns a response's name only when its session is held; before the first event."""
        self.head = dataclasses.replace(self.head, id=response_id)

    async def events(self) -> AsyncGenerator[tuple[int, Event], None]:
        """Events of all choices, each with its choice's index. With a session, `Finished` comes when the turn is durable."""
        async with contextlib.AsyncExitStack() as stack:
            conversation = None
            if self._remembered is not None:
                conversation = await stack.enter_async_context(self._remembered.conversation)
                if conversation is not None and (turn := await self._answered(conversation)) is not None:
                    for event in self._replay(conversation, turn):
                        yield 0, event
                    return
            async with contextlib.aclosing(self._run(conversation)) as events:
                async for index, event in events:
                    yield index, event
        self._log_end()

    async def _run(self, conversation: Conversation | None) -> AsyncGenerator[tuple[int, Event], None]:
        door, metrics = self._door, self._door.metrics
        with door.admission.admit(self._wire.n or 1):
            self._trail.turn_began, self._trail.response_id = time.time(), self.head.id
            door.supervisor.require_ready()
            # The lease spans the whole turn: a version that is replaced meanwhile stays loaded to its end.
            async with self._lease() as lease:
                turn = await self._begin(lease, conversation)
                first = True
                async with contextlib.aclosing(door.turns.run(turn)) as events:
                    async for index, event in events:
                        if first:
                            metrics.first_token_s.observe(time.monotonic() - self._begun)
                            self._trail.first_event = time.time()
                            first = False
                        if isinstance(event, Finished):
                            self._count(event)
                        if conversation is not None:
                            await self._remember(conversation, event)
                        yield index, event

    # Memory

    async def _answered(self, conversation: Conversation) -> Turn | None:
        assert self._remembered is not None
        key = self._remembered.idempotency_key
        return None if key is None else await conversation.answered(key, self._remembered.request_hash)

    def _replay(self, conversation: Conversation, turn: Turn) -> Iterator[Event]:
        """A stored turn's events, for a request that comes again."""
        self.head = dataclasses.replace(self.head, id=turn.request_id, created=int(turn.created))
        self.session = SessionUsed(conversation.id, turn.seq, replayed=True)
        if turn.adapter is not None:
            self.adapter = AdapterUsed(turn.adapter, turn.adapter_version or "")
        self._present(thinking_options(self._wire, read_messages(self._wire.messages)), 1)
        for event in _events_of(turn):
            if isinstance(event, Finished):
                self.finished.append(event)
            yield event
        log.info("stored answer sent again", extra=fields(response_id=self.head.id))

    async def _begin(self, lease: Lease | None, conversation: Conversation | None) -> TurnRequest:
        """The turn, checked, and with a session written down as pending."""
        messages = read_messages(self._wire.messages)
        for tries_left in range(_BEGIN_TRIES - 1, -1, -1):
            turn = await self._build(lease, messages, conversation)
            await self._door.turns.check(turn)
            if conversation is None or self._remembered is None or not self._remembered.stores:
                return turn
            used, remembered = self.adapter, self._remembered
            try:
                await conversation.begin(
                    self.head.id,
                    adapter=(used.name, used.version) if used else None,
                    idempotency_key=remembered.idempotency_key,
                    request_hash=remembered.request_hash,
                )
            except SessionChanged:
                if not tries_left:
                    raise
                await conversation.load()
            else:
                self.session = SessionUsed(conversation.id, conversation.seq, self._dropped)
                # Whoever asks for the response again gets the stored time: both are one.
                self.head = dataclasses.replace(self.head, created=int(conversation.created))
                return turn
        raise AssertionError("unreachable")

    async def _remember(self, conversation: Conversation, event: Event) -> None:
        assert self._remembered is not None
        if not self._remembered.stores:
            return
        if isinstance(event, Finished):
            # What was not shown was not judged: it is not kept to be shown later.
            await conversation.end(event, keeps_reasoning=self.options.shown)
        else:
            conversation.record(event)

    # Building

    @property
    def _instructions(self) -> str | None:
        return self._remembered.instructions if self._remembered is not None else None

    @contextlib.asynccontextmanager
    async def _lease(self) -> AsyncIterator[Lease | None]:
        model, registry = self._wire.model, self._door.registry
        if model is None or registry is None or self._door.names.is_base(model):
            yield None
            return
        async with registry.lease(model) as lease:
            self.adapter = AdapterUsed(lease.name, lease.version)
            self._trail.adapter, self._trail.adapter_version = lease.name, lease.version
            yield lease

    async def _build(
        self, lease: Lease | None, messages: Sequence[Message], conversation: Conversation | None
    ) -> TurnRequest:
        door, wire, info = self._door, self._wire, self._door.engine.info
        default = lease.system_prompt if lease else None
        if conversation is None:
            if self._instructions:
                messages = [Message(role="system", content=self._instructions), *messages]
            said: Sequence[Message] = messages
            system = door.prompts.system_prompt(messages, default)
            prompt_ids = door.prompts.build(messages, tool_specs(wire), info.max_model_len, default)
        else:
            system, prompt_ids = await self._from_history(conversation, messages, default)
            said = conversation.messages
        room = door.prompts.room(prompt_ids, info.max_model_len)
        turn = build_turn(wire, self.head.id, messages, prompt_ids, room, info.vocab_size, door.sampling_defaults)
        if conversation is not None and turn.choices > 1:
            raise ContradictoryParameters("a session's turn has one answer: leave n out, or session_id", param="n")
        self._present(turn.thinking, turn.choices)
        return dataclasses.replace(
            turn,
            adapter=lease.handle if lease else None,
            guard=self._guard(turn, said, system),
            # Who asks without a key shares the prefix cache with everybody else who does.
            cache_salt=None if self._tenant == ANONYMOUS else cache_salt(self._tenant, door.cache_secret),
        )

    async def _from_history(
        self, conversation: Conversation, messages: Sequence[Message], default: str | None
    ) -> tuple[str | None, list[int]]:
        """System prompt and prompt ids of a conversation whose history the server has."""
        prompts, limit, tools = self._door.prompts, self._door.engine.info.max_model_len, tool_specs(self._wire)
        prompts.require_short(messages, tools, limit)
        await conversation.take(messages)
        own = [text for text in (self._instructions, conversation.system_prompt) if text]
        system = "\n".join(own) or prompts.system_prompt((), default)
        window = conversation.window(system, tools, prompts.window_budget(limit, reply_tokens(self._wire)))
        self._dropped = window.dropped
        return system, prompts.require_room(window.ids, limit)

    def _present(self, options: ThinkingOptions, choices: int) -> None:
        self.options = options
        self.presenters = [ChoicePresenter(options, self._door.annotator) for _ in range(choices)]

    def _guard(self, turn: TurnRequest, messages: Sequence[Message], system_prompt: str | None) -> TurnGuard | None:
        question = Question(
            request_id=self.head.id,
            messages=[(m.role, m.content) for m in messages if m.role in ("user", "assistant")],
            system_prompt=system_prompt,
            streaming=bool(self._wire.stream),
            amends_text=turn.sampling.grammar is None and turn.forced_call is None,
            shows_reasoning=turn.thinking.shown,
        )
        return self._door.guard.open(question)

    # Counting, and what went wrong

    def _count(self, finished: Finished) -> None:
        metrics, usage = self._door.metrics, finished.usage
        self.finished.append(finished)
        metrics.reasoning_tokens.inc(usage.reasoning_tokens)
        metrics.answer_tokens.inc(usage.completion_tokens - usage.reasoning_tokens)
        metrics.thinking_truncated.inc(finished.thinking_truncated)
        metrics.finished.labels(finish_reason=finished.reason).inc()
        trail = self._trail
        trail.input_tokens = max(trail.input_tokens, usage.prompt_tokens)
        trail.output_tokens += usage.completion_tokens
        trail.reasoning_tokens += usage.reasoning_tokens
        trail.finish_reasons.append(finished.reason)
        trail.turn_ended = time.time()

    def _log_end(self) -> None:
        seconds = time.monotonic() - self._begun
        self._door.metrics.turn_s.labels(stream=str(bool(self._wire.stream)).lower()).observe(seconds)
        usages = [f.usage for f in self.finished]
        log.info(
            "turn done",
            extra=fields(
                response_id=self.head.id,
                adapter=f"{self.adapter.name}@{self.adapter.version}" if self.adapter else None,
                turn=self.session.turn if self.session else None,
                dropped_turns=self._dropped or None,
                seconds=round(seconds, 3),
                prompt_tokens=usages[0].prompt_tokens if usages else 0,
                reasoning_tokens=sum(u.reasoning_tokens for u in usages),
                completion_tokens=sum(u.completion_tokens for u in usages),
                finish_reason=",".join(f.reason for f in self.finished),
            ),
        )

    def to_error(self, error: Exception) -> ApiError:
        """What the client is told about anything that the turn raised."""
        known = self._known(error)
        self._door.metrics.errors.labels(code=known.code).inc()
        self._trail.error = known.code
        return known

    def _known(self, error: Exception) -> ApiError:
        if isinstance(error, ApiError):
            return error
        if isinstance(error, SessionError):
            return to_api_error(error)
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
        log.info("client left, turn aborted", extra=fields(response_id=self.head.id))


def _events_of(turn: Turn) -> Iterator[Event]:
    if turn.reasoning:
        yield Reasoning(turn.reasoning)
        yield ReasoningDone(turn.thinking_truncated)
    if turn.status == "blocked":
        yield Replaced(turn.answer, turn.safety)
    elif turn.answer:
        yield Answer(turn.answer)
    for n, call in enumerate(turn.tool_calls):
        yield ToolCallDelta(n, f"call_{turn.request_id[-12:]}{n:012d}", call.name, call.arguments)
    reason: Any = turn.finish_reason or "stop"
    yield Finished(reason, turn.usage, None, turn.thinking_truncated, turn.safety)
