"""Composition root: the only place that constructs the parts and knows them all."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from prometheus_client import REGISTRY, CollectorRegistry
from starlette.middleware.cors import CORSMiddleware

from services.api.access.door import AccessDoor
from services.api.access.file import KeyStore
from services.api.access.limits import Limits
from services.api.adapters.cache import AdapterCache, Expected
from services.api.adapters.canary import Canary
from services.api.adapters.registry import AdapterRegistry
from services.api.adapters.watcher import AdapterWatcher
from services.api.audit.file import AuditTrail
from services.api.ehr.door import ehr_routers
from services.api.engine.admission import Admission
from services.api.engine.base import Engine
from services.api.engine.supervisor import Supervisor
from services.api.http.adapters import adapters_router
from services.api.http.chat import chat_router
from services.api.http.error_handlers import add_error_handlers
from services.api.http.middleware import RequestContextMiddleware, Surroundings
from services.api.http.models import ModelNames, models_router
from services.api.http.openapi import describe
from services.api.http.ops import ops_router
from services.api.http.responses import responses_router
from services.api.http.run import ChatDoor
from services.api.http.sessions import sessions_router
from services.api.memory.conversations import Memory
from services.api.memory.crypto import KeyRing
from services.api.memory.errors import SessionError
from services.api.memory.store import SessionStore
from services.api.memory.turn_ids import TurnWriter
from services.api.metrics import Metrics
from services.api.prompt import PromptBuilder
from services.api.safety.audit import AuditFile
from services.api.safety.drugs import DrugTable
from services.api.safety.guard import Guard
from services.api.safety.policy import FOLDER
from services.api.safety.readers import Readers
from services.api.safety.second_opinion import EngineOpinion
from services.api.safety.store import PolicyStore
from services.api.settings import ROOT, Settings
from services.api.thinking.guidelines import Guidelines
from services.api.thinking.present import Annotator
from services.api.thinking.token_text import TokenTexts
from services.api.tracing import Tracing
from services.api.turn import Turns
from services.api.warm_up import warm_up
from services.api.web.routes import web_router
from services.contract.adapter_manifest import config_sha256
from services.contract.chat_format import ChatFormat, Message

log = logging.getLogger(__name__)

VERSION = "0.1.0"
READABLE_HEADERS = (
    "X-Request-ID",
    "Retry-After",
    "Content-Language",
    "X-RateLimit-Limit-Requests",
    "X-RateLimit-Remaining-Requests",
    "X-RateLimit-Reset-Requests",
)


@dataclass(frozen=True)
class Model:
    """The model to serve, as its files say."""

    engine: Engine
    chat_format: ChatFormat
    id_to_token: Callable[[int], str | None]
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
    demo: str | None = None
    config: Mapping[str, Any] | None = None  # config.json; adapters are checked against it


@dataclass(frozen=True)
class Service:
    """The app and the parts that the process's main needs: to drain, and to learn of a failed start."""

    app: FastAPI
    supervisor: Supervisor
    admission: Admission
    life: Life
    memory: Memory | None = None


class Life:
    """Runs the supervisor, and whatever watches files, beside the server."""

    def __init__(
        self,
        supervisor: Supervisor,
        beside: Sequence[Callable[[], Awaitable[None]]],
        on_failure: Callable[[Exception], None],
        memory: Memory | None = None,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        """`beside`: what runs as long as the server does. `on_failure` is told why the very first start has failed.

        `at_end` may take seconds, and runs in a thread.
        """
        self._supervisor = supervisor
        self._beside = beside
        self._on_failure = on_failure
        self._memory = memory
        self._at_end = at_end

    @contextlib.asynccontextmanager
    async def run(self, app: FastAPI) -> AsyncIterator[None]:
        if self._memory is not None:
            try:
                await self._memory.open()
            except SessionError as error:  # a key is missing, or the database is newer: only the operator can mend it
                self._on_failure(error)
        tasks = [asyncio.ensure_future(task()) for task in (self._supervise, *self._beside)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._supervisor.stop()
            await asyncio.to_thread(self._at_end)

    async def _supervise(self) -> None:
        try:
            await self._supervisor.run()
        except Exception as error:  # noqa: BLE001 - reported to main, which ends the process with one line
            self._on_failure(error)


@dataclass(frozen=True)
class Adapters:
    """The adapter side, put together; absent when no volume is configured."""

    registry: AdapterRegistry
    canary: Canary


def build_adapters(settings: Settings, model: Model, metrics: Metrics) -> Adapters | None:
    """Registry, private cache and canary for the configured volume."""
    if settings.adapter_volume is None or model.config is None:
        return None
    expected = Expected(
        dict(model.config), config_sha256(model.config), model.chat_format.digest, settings.max_adapter_rank
    )
    ids = model.chat_format.write_prompt([Message(role="user", content="你好，请介绍一下你自己。")])
    canary = Canary(model.engine, ids)
    registry = AdapterRegistry(
        model.engine,
        AdapterCache(settings.adapter_copies, expected),
        canary.try_out,
        settings.adapter_volume,
        settings.max_adapters_loaded,
        lambda state, name: metrics.adapters.labels(state=state).inc(),
        reserved=ModelNames(settings.served_model_name, 0, model.demo).base(),
    )
    return Adapters(registry, canary)


def build_memory(settings: Settings, model: Model) -> Memory | None:
    """The sessions' store, not yet opened. Raises `SessionError` for a bad URL or key."""
    if not settings.database:
        return None
    store = SessionStore(
        settings.database_url, KeyRing.parse(settings.memory_keys), ttl_s=settings.session_ttl_s or None
    )
    return Memory(store, TurnWriter(model.chat_format), settings.session_wait_s)


def build(
    settings: Settings,
    model: Model,
    *,
    registry: CollectorRegistry = REGISTRY,
    on_ready: Callable[[float], None] = lambda seconds: None,
    on_failure: Callable[[Exception], None] = lambda error: None,
) -> Service:
    """All parts, put together. Starts nothing: the engine starts with the app's lifespan."""
    metrics = Metrics(registry)
    texts = TokenTexts(model.id_to_token, model.chat_format.control_ids)

    def ready(seconds: float) -> None:
        metrics.engine_start_s.set(seconds)
        on_ready(seconds)

    adapters = build_adapters(settings, model, metrics)
    registry_of_adapters = adapters.registry if adapters else None

    async def warm() -> None:
        await warm_up(model.engine, model.chat_format)
        if adapters is not None:
            adapters.canary.forget()
            await adapters.registry.restore()

    supervisor = Supervisor(model.engine, warm, settings.restart_backoff_s, ready, metrics.engine_restarts.inc)
    store = PolicyStore(
        settings.safety_profile,
        settings.policy_folder,
        lambda result: metrics.safety_reloads.labels(result=result).inc(),
    )
    readers = Readers(settings.policy_folder or FOLDER, settings.reader_count)
    beside: list[Callable[[], Awaitable[None]]] = [functools.partial(store.run, settings.safety_poll_s), readers.run]
    if adapters is not None and settings.adapter_volume is not None:
        watcher = AdapterWatcher(
            settings.adapter_volume,
            adapters.registry,
            settings.adapter_poll_s,
            is_ready=lambda: supervisor.is_ready,
            on_volume=metrics.adapter_volume_up.set,
        )
        beside.append(watcher.run)
    memory = build_memory(settings, model)
    if memory is not None:
        beside.append(memory.run)
    admission = Admission(settings.max_active_requests)
    names = ModelNames(settings.served_model_name, int(time.time()), model.demo, registry_of_adapters)
    door = ChatDoor(
        engine=model.engine,
        supervisor=supervisor,
        admission=admission,
        registry=registry_of_adapters,
        names=names,
        prompts=PromptBuilder(model.chat_format, settings.system_prompt),
        turns=Turns(model.engine, model.chat_format, texts, settings.answer_reserve),
        guard=Guard(
            store,
            AuditFile(settings.record_file),
            metrics,
            settings.safety_check_limit_s,
            EngineOpinion(model.engine, model.chat_format) if settings.safety_second_opinion else None,
            readers,
        ),
        annotator=read_annotator(),
        metrics=metrics,
        sampling_defaults=model.sampling_defaults,
        max_body_bytes=settings.max_body_bytes,
        keep_alive_s=settings.keep_alive_s,
        memory=memory,
        cache_secret=settings.cache_secret.encode(),
    )
    keys = KeyStore(settings.key_file, settings.keys, lambda result: metrics.key_reloads.labels(result=result).inc())
    beside.append(functools.partial(keys.run, settings.keys_poll_s))
    surroundings = build_surroundings(settings, metrics, keys)
    hooks, pages, cases = ehr_routers(door, settings, store, model.chat_format, ROOT)
    beside.append(cases.run)
    life = Life(supervisor, beside, on_failure, memory, functools.partial(close_records, surroundings))
    # No /docs page: FastAPI's loads scripts from other hosts, which a hospital network does not reach.
    app = FastAPI(title="MedThink", version=VERSION, lifespan=life.run, docs_url=None, redoc_url=None)
    app.include_router(chat_router(door))
    app.include_router(responses_router(door))
    app.include_router(sessions_router(memory, settings.max_body_bytes))
    app.include_router(models_router(names, lambda: _if_ready(supervisor, model.engine)))
    app.include_router(adapters_router(registry_of_adapters))
    app.include_router(hooks)
    app.include_router(pages)
    app.include_router(web_router())  # before the operators' routes: a browser's / is the page
    app.include_router(ops_router(supervisor, admission, metrics, lambda: versions(settings, model, supervisor)))
    add_error_handlers(app, metrics)
    app.add_middleware(RequestContextMiddleware, surroundings=surroundings)
    if settings.origins:  # outside of the rest: a refusal, too, must be readable to the page that asked
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=READABLE_HEADERS,
            max_age=600,
        )
    describe(app)
    return Service(app, supervisor, admission, life, memory)


def build_surroundings(settings: Settings, metrics: Metrics, keys: KeyStore) -> Surroundings:
    """Keys, limits, audit and traces: what stands around every request. Raises `OSError` for a folder that cannot be written."""
    return Surroundings(
        access=AccessDoor(
            keys,
            Limits(settings.rate_limit, settings.concurrency_limit),
            metrics_open=settings.metrics_open,
            own_auth=("/cds-services",) if settings.ehr_auth == "jwt" else (),
        ),
        metrics=metrics,
        audit=AuditTrail(
            settings.audit_folder,
            settings.audit_format,
            settings.audit_retention_days,
            lambda result: metrics.audit_entries.labels(result=result).inc(),
        )
        if settings.audit_folder
        else None,
        audit_required=settings.audit_required,
        tracing=Tracing(settings.otlp_endpoint, VERSION) if settings.otlp_endpoint else None,
        request_limit_s=settings.request_limit_s,
        max_header_bytes=settings.max_header_bytes,
    )


def close_records(surroundings: Surroundings) -> None:
    """Audit entries and traces that wait are written before the process ends."""
    if surroundings.audit is not None:
        surroundings.audit.close()
    if surroundings.tracing is not None:
        surroundings.tracing.close()


def versions(settings: Settings, model: Model, supervisor: Supervisor) -> dict[str, Any]:
    """What /version says."""
    known: dict[str, Any] = {"name": "MedThink", "version": VERSION, "model": settings.served_model_name}
    known |= {"demo": model.demo is not None, "chat_format": model.chat_format.digest[:16]}
    if supervisor.is_ready:
        info = model.engine.info
        known |= {"engine": f"vllm {info.engine_version}", "device": info.device, "max_model_len": info.max_model_len}
    return known


@functools.cache  # tests build hundreds of apps, and reading the table is most of building one
def read_annotator() -> Annotator:
    """Links guidelines, and the drugs of the safety table, in annotated reasoning; drugs' names that are everyday words too
    are left alone."""
    table = DrugTable.load()
    drugs = {name: table.address(drug) for name, drug in table.names().items() if name not in table.ordinary_words}
    return Annotator(drugs, Guidelines.load())


def _if_ready(supervisor: Supervisor, engine: Engine) -> int | None:
    return engine.info.max_model_len if supervisor.is_ready else None
