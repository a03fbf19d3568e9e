"""What the rest of the API knows of an engine: a prompt's ids go in, deltas of ids come out, closing the stream aborts.

The engine knows nothing of text, thinking or tools, which keeps it replaceable.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

EngineState = Literal["starting", "ready", "dead", "stopped"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint on the sampled text."""

    kind: Literal["json_schema", "json_object", "regex", "choice", "grammar"]
    value: Any = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample; the names and meanings of OpenAI's and vLLM's request fields.

    `logprobs` is the number of alternatives per token; `None` asks for none, 0 for the sampled token alone.
    Stop strings are not here: they are text, so the turn watches for them and closes the stream.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True)
class AdapterHandle:
    """A loaded adapter: a name and an id of its own for every version, and the private folder that holds it."""

    name: str
    engine_id: int
    folder: str


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate. `request_id` must be unique among running requests; `adapter` must be loaded."""

    request_id: str
    prompt_ids: Sequence[int]
    sampling: Sampling
    adapter: AdapterHandle | None = None
    priority: int = 0
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class TokenAlternatives:
    """Log-probabilities at one place: the sampled token's and those of the best, by token id, best first."""

    sampled: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class EngineDelta:
    """New token ids since the last delta. The last one has a `finish_reason`; `stop_reason` is the stop token's id."""

    token_ids: Sequence[int]
    logprobs: Sequence[TokenAlternatives] = ()
    finish_reason: Literal["stop", "length", "abort", "error"] | None = None
    stop_reason: int | str | None = None
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a client may ask about the loaded model."""

    max_model_len: int
    vocab_size: int
    engine_version: str
    device: str


class EngineDied(Exception):
    """The engine process is gone. Running streams end; the supervisor restarts it."""


class BadSampling(ValueError):
    """The engine refuses these sampling parameters; the message is fit for the client."""


class AdapterRefused(ValueError):
    """The engine cannot load this adapter, or it answers nonsense; the message fits in one line."""


class Engine(Protocol):
    """One loaded model."""

    @property
    def state(self) -> EngineState: ...

    @property
    def info(self) -> ModelInfo:
        """Known once the state has been `ready`."""
        ...

    async def start(self) -> None:
        """Loads the model; returns when it can generate."""
        ...

    async def stop(self) -> None:
        """Ends the engine and frees its memory. Running streams raise `EngineDied`."""
        ...

    async def check(self, request: GenerationRequest) -> None:
        """Raises `BadSampling` for what `generate` would refuse, a broken grammar included. Generates nothing."""
        ...

    async def load_adapter(self, adapter: AdapterHandle) -> None:
        """Makes an adapter usable in `generate`. Raises `AdapterRefused`; then nothing of it is left in the engine."""
        ...

    async def unload_adapter(self, adapter: AdapterHandle) -> None:
        """Frees its place. No request may be using it. Not an error for one that is not loaded."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[EngineDelta, None]:
        """Deltas in order, the last with a finish reason. Closing the generator aborts the request in the engine.

        Raises `BadSampling` before the first delta, `EngineDied` at any time.
        """
        ...
