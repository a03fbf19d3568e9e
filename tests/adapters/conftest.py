"""The adapter side over a scripted engine: a tiny base model, its volume, and parts that a test can look into."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.api.adapters.cache import AdapterCache, Expected
from services.api.adapters.canary import Canary
from services.api.adapters.registry import AdapterRegistry
from services.api.adapters.watcher import AdapterWatcher
from services.api.engine.base import AdapterHandle, GenerationRequest, Sampling
from services.contract.adapter_manifest import config_sha256
from services.contract.chat_format import ChatFormat, Message
from tests.adapters.volumes import TINY_BASE, Volume
from tests.fakes import FakeEngine, Pen


@dataclass
class Side:
    """Registry, watcher and private cache over one volume and one scripted engine."""

    volume: Volume
    engine: FakeEngine
    cache: AdapterCache
    copies: Path
    registry: AdapterRegistry
    watcher: AdapterWatcher
    prompt: list[int]
    changes: list[tuple[str, str]] = field(default_factory=list)
    asked: int = 0

    async def generate(self, handle: AdapterHandle | None, tokens: int = 8) -> list[int]:
        self.asked += 1
        request = GenerationRequest(
            f"test-{self.asked}", self.prompt, Sampling(max_tokens=tokens, ignore_eos=True), handle
        )
        return [i async for delta in self.engine.generate(request) for i in delta.token_ids]

    async def says(self, model: str) -> list[int]:
        async with self.registry.lease(model) as lease:
            return await self.generate(lease.handle)

    def described(self, name: str, version: str) -> dict[str, object]:
        """What GET /v1/adapters says of one version."""
        (found,) = [a for a in self.registry.describe() if a["name"] == name]
        (one,) = [v for v in found["versions"] if v["version"] == version]
        return dict(one)

    def loaded(self) -> set[str]:
        return {handle.name for handle in self.engine.adapters.values()}

    def copied(self) -> set[str]:
        """Names of the private copies, temporary ones included."""
        return {path.name for path in self.copies.iterdir()} if self.copies.is_dir() else set()


def voice(pen: Pen, model: str | None, tokens: int = 8) -> list[int]:
    """The first tokens of the scripted model's reply: it says which version it is."""
    written = pen.write(model.partition("@")[2] + model if model else "base")
    return (written + [written[-1]] * tokens)[:tokens]


@pytest.fixture(autouse=True)
def without_waiting_for_disks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def speaking(chat_format: ChatFormat, pen: Pen) -> Callable[..., FakeEngine]:
    """Engines whose model says which version it is."""

    def reply(request: GenerationRequest) -> list[int]:
        return voice(pen, request.adapter.name if request.adapter else None)

    return lambda **options: FakeEngine(chat_format, reply, **options)


@pytest.fixture
def volume(tmp_path: Path, chat_format: ChatFormat) -> Volume:
    return Volume(tmp_path / "volume", tmp_path / "work", TINY_BASE, chat_format.digest)


@pytest.fixture
def make_side(tmp_path: Path, volume: Volume, speaking: Callable[..., FakeEngine]) -> Callable[..., Side]:
    def make(most_loaded: int = 4, **options: object) -> Side:
        engine = speaking(**options)
        expected = Expected(dict(volume.base), config_sha256(volume.base), volume.chat_format_sha256, max_rank=8)
        cache = AdapterCache(tmp_path / "copies", expected)
        changes: list[tuple[str, str]] = []
        prompt = engine.chat_format.write_prompt([Message(role="user", content="?")])
        canary = Canary(engine, prompt).try_out
        registry = AdapterRegistry(
            engine, cache, canary, volume.root, most_loaded, lambda *change: changes.append(change)
        )
        watcher = AdapterWatcher(volume.root, registry, poll_s=0.01, timeout_s=1.0)
        return Side(volume, engine, cache, tmp_path / "copies", registry, watcher, prompt, changes)

    return make


@pytest.fixture
async def side(make_side: Callable[..., Side]) -> AsyncIterator[Side]:
    made = make_side()
    await made.engine.start()
    yield made
    # Nothing that a test began goes on behind it.
    assert [t for t in asyncio.all_tasks() if t is not asyncio.current_task() and not t.done()] == []
