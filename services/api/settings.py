"""The environment, read once into one frozen object. Prefix `MEDTHINK_`; a bad value stops the start with all problems listed."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.contract.chat_format import DEFAULT_SYSTEM_PROMPT

ROOT = Path(__file__).resolve().parents[2]
DEMO_MODEL = ROOT / "deploy" / "demo"


class Settings(BaseSettings):
    """Every setting, its default and what it means."""

    model_config = SettingsConfigDict(env_prefix="MEDTHINK_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    model: str = Field(
        "", description="model directory or hub id; empty: Qwen/Qwen3-1.7B with a GPU, the demo model without"
    )
    model_source: Literal["huggingface", "modelscope"] = Field("huggingface", description="hub that serves a hub id")
    served_model_name: str = Field("Qwen3-1.7B", description="name in /v1/models; Qwen3-1.7B is always accepted too")
    system_prompt: str = Field(
        DEFAULT_SYSTEM_PROMPT, description="used when a request brings no system message; empty: none"
    )
    api_keys: str = Field("", description="comma-separated keys for Authorization: Bearer; empty: no key is asked for")

    max_model_len: int = Field(
        16384, ge=256, description="most tokens of prompt and reply together; the model's own limit if lower"
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of the GPU's memory that the engine may take"
    )
    kv_cache_gib: float = Field(1.0, gt=0, description="memory for the KV cache when the engine runs on a CPU, GiB")
    max_num_seqs: int = Field(0, ge=0, description="most sequences in one engine step; 0: 256 on a GPU, 32 on a CPU")
    engine_args: str = Field("{}", description="JSON object of further vLLM engine arguments, for experts")

    adapters: str = Field(
        "adapters", description="shared volume with adapters, relative to the checkout; empty: none are served"
    )
    adapter_cache: str = Field("", description="folder for private copies of adapters; empty: one in the user's cache")
    adapter_poll_s: float = Field(0.5, gt=0, description="seconds between two looks at the adapter volume")
    max_adapter_rank: int = Field(32, description="largest rank that is served: 8, 16, 32, 64, 128, 256, 320 or 512")
    max_adapters_in_batch: int = Field(4, ge=1, le=64, description="different adapters in one engine step")
    max_adapters_loaded: int = Field(
        16, ge=1, le=1024, description="adapters loaded at a time; the idle one goes first"
    )

    database: str = Field(
        "data/memory.db",
        description="where sessions are kept: a file, relative to the checkout, or a postgresql:// URL; empty: no memory",
    )
    memory_keys: str = Field(
        "", description="keys that seal stored sessions, base64 of 32 bytes each, the newest first; empty: not sealed"
    )
    session_ttl_s: float = Field(
        0.0, ge=0, description="sessions expire this long after their last turn unless they name another; 0: never"
    )
    session_wait_s: float = Field(
        10.0, gt=0, description="how long a turn waits for the one before it in its session; then 409"
    )
    cache_secret: str = Field("", description="makes tenants' prefix cache salts unguessable; the same on all replicas")

    max_active_requests: int = Field(512, ge=1, description="most choices generated or queued at once; beyond it 503")
    answer_reserve: int = Field(512, ge=1, description="tokens of max_tokens kept for the answer, at most half of them")
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="largest request body; beyond it 413")
    drain_s: float = Field(30.0, ge=0, description="on SIGTERM, seconds that running streams get to finish")
    keep_alive_s: float = Field(15.0, gt=0, description="a comment frame goes out when a stream was silent this long")
    restart_backoff_s: float = Field(
        1.0, gt=0, description="first pause before a dead engine is restarted; doubles up to 60 s"
    )

    safety_profile: Literal["default", "seed", "off"] = Field(
        "default", description="seed: the article's three expressions, to compare; off: no guard, only on loopback"
    )
    safety_policy: str = Field("", description="folder with the policy's YAML files; empty: the one that is shipped")
    safety_poll_s: float = Field(2.0, gt=0, description="seconds between two looks for changed policy files")
    safety_check_limit_s: float = Field(1.0, gt=0, description="a check of one sentence that takes longer blocks")
    safety_records: str = Field("", description="file to append a record of each judged reply to; empty: none")
    safety_second_opinion: bool = Field(
        False, description="ask the served model for a verdict on each reply as well; it can only raise severity"
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe line that is logged"
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="auto: text on a terminal, JSON lines elsewhere"
    )

    @field_validator("engine_args")
    @classmethod
    def _engine_args_are_a_json_object(cls, value: str) -> str:
        import json

        try:
            parsed = json.loads(value)
        except ValueError as error:
            raise ValueError(f"not JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise ValueError("must be a JSON object")
        return value

    @field_validator("max_adapter_rank")
    @classmethod
    def _rank_is_one_that_the_engine_knows(cls, value: int) -> int:
        if value not in (8, 16, 32, 64, 128, 256, 320, 512):
            raise ValueError("must be 8, 16, 32, 64, 128, 256, 320 or 512")
        return value

    @model_validator(mode="after")
    def _guard_is_off_on_loopback_only(self) -> Self:
        if self.safety_profile == "off" and not is_loopback(self.host):
            raise ValueError(
                f"MEDTHINK_SAFETY_PROFILE=off is for loopback only, and the server would listen on {self.host}: "
                "set MEDTHINK_HOST=127.0.0.1, or another profile"
            )
        return self

    @property
    def adapter_volume(self) -> Path | None:
        return (ROOT / self.adapters) if self.adapters else None

    @property
    def adapter_copies(self) -> Path:
        if self.adapter_cache:
            return Path(self.adapter_cache)
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return Path(base) / "medthink" / "adapters" / str(os.getpid())

    @property
    def database_url(self) -> str:
        """Empty without memory; a file's path is absolute."""
        if not self.database or "://" in self.database:
            return self.database
        return f"sqlite:///{ROOT / self.database}"

    @property
    def policy_folder(self) -> Path | None:
        return Path(self.safety_policy) if self.safety_policy else None

    @property
    def record_file(self) -> Path | None:
        return Path(self.safety_records) if self.safety_records else None

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key.strip() for key in self.api_keys.split(",") if key.strip())


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class SettingsError(ValueError):
    """One line a problem, each naming its variable."""


def read_settings() -> Settings:
    """Settings from the environment; raises `SettingsError` listing every problem."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [_problem(e) for e in error.errors()]
        raise SettingsError("\n".join(lines)) from error


def _problem(error: Any) -> str:
    """A line for one problem; one that several settings make together names them itself."""
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    return f"MEDTHINK_{str(error['loc'][0]).upper()}: {error['msg']} (got {error['input']!r})"
