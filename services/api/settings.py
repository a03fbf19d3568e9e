"""The environment, read once into one frozen object. Prefix `MEDTHINK_`; a bad value stops the start with all problems listed."""

from __future__ import annotations

import ipaddress
import os
import re
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
    api_keys: str = Field("", description="comma-separated keys for Authorization: Bearer, each with all scopes")
    keys_file: str = Field(
        "",
        description="file with hashed keys, made by 'python -m services.api.access'; changes are taken up while serving",
    )
    keys_poll_s: float = Field(1.0, gt=0, description="seconds between two looks at the keys file")
    insecure: bool = Field(False, description="listen on other addresses than loopback although no key is asked for")
    metrics_open: bool = Field(False, description="/metrics needs no key where other routes do")
    rate_limit: int = Field(
        0, ge=0, description="requests a minute of one key that names no limit itself; 0: any number"
    )
    concurrency_limit: int = Field(
        0, ge=0, description="requests at a time of one key that names no limit itself; 0: any number"
    )

    cors_origins: str = Field(
        "", description="comma-separated origins whose pages may call, like https://ehr.example.org; empty: none"
    )
    trusted_proxies: str = Field(
        "",
        description="comma-separated addresses and networks whose X-Forwarded-For and -Proto are believed; empty: none",
    )
    tls_cert: str = Field("", description="PEM file with the certificate chain: serve https; needs the key too")
    tls_key: str = Field("", description="PEM file with the certificate's private key")

    audit: str = Field("", description="folder for the audit trail, a JSONL file a day; empty: none is kept")
    audit_format: Literal["json", "fhir"] = Field("json", description="json: our own form; fhir: R4 AuditEvent")
    audit_retention_days: int = Field(0, ge=0, description="audit files older than this are removed; 0: never")
    audit_required: bool = Field(False, description="while the audit trail cannot be written, answer 503")
    otlp_endpoint: str = Field(
        "", description="OTLP/HTTP collector that gets traces, like http://collector:4318; empty: none"
    )

    max_model_len: int = Field(
        16384, ge=256, description="most tokens of prompt and reply together; the model's own limit if lower"
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of the GPU's memory that the engine may take"
    )
    kv_cache_gib: float = Field(1.0, gt=0, description="memory for the KV cache when the engine runs on a CPU, GiB")
    max_num_seqs: int = Field(
        0, ge=0, description="most sequences in one engine step; 0: vLLM's own on a GPU, 32 on a CPU"
    )
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
    request_limit_s: float = Field(0.0, ge=0, description="longest that a request may take; beyond it 504; 0: any time")
    max_header_bytes: int = Field(65536, ge=4096, description="largest request headers together; beyond it 431")
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
    safety_readers: int = Field(
        -1,
        ge=-1,
        le=64,
        description="processes that read long questions beside the server; -1: one for every four cores, at most 8",
    )
    safety_second_opinion: bool = Field(
        False, description="ask the served model for a verdict on each reply as well; it can only raise severity"
    )

    ehr_auth: Literal["jwt", "off"] = Field(
        "jwt", description="jwt: CDS Hooks calls need an EHR's signed token; off: nobody is asked, only on loopback"
    )
    ehr_clients: str = Field(
        "", description="JSON file with the trusted EHRs and their keys (docs/ehr.md); empty: every token is refused"
    )
    ehr_base_url: str = Field(
        "", description="address by which EHRs and their browsers reach this server; tokens must be made out to it"
    )
    ehr_language: Literal["zh", "en"] = Field("zh", description="language of cards where a call prefers none")
    ehr_deadline_s: float = Field(4.5, ge=0.5, le=60, description="a CDS Hooks call is answered within this time")
    ehr_thinking_budget: int = Field(256, ge=0, description="most tokens of thought for a card; 0: answer at once")
    ehr_answer_tokens: int = Field(384, ge=16, description="most tokens of a card's text")
    ehr_link_ttl_s: float = Field(900.0, gt=0, description="a card's link to its analysis holds this long")
    ehr_secret: str = Field(
        "", description="signs those links and hides names in the EHR audit; empty: a new one each start"
    )
    ehr_frame_origins: str = Field(
        "", description="comma-separated origins that may show the page of an analysis in a frame; empty: none"
    )
    ehr_feedback: str = Field(
        "data/cds-feedback.jsonl", description="file for what became of cards, relative to the checkout; empty: none"
    )
    ehr_audit: str = Field("", description="file for a FHIR AuditEvent of each CDS Hooks call; empty: none")

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

    @model_validator(mode="after")
    def _ehr_calls_are_signed(self) -> Self:
        if self.ehr_auth == "off" and not is_loopback(self.host):
            raise ValueError(
                f"MEDTHINK_EHR_AUTH=off is for loopback only, and the server would listen on {self.host}: "
                "set MEDTHINK_EHR_CLIENTS, and leave MEDTHINK_EHR_AUTH out"
            )
        if self.ehr_clients and not re.fullmatch(r"https?://[^\s?#]+", self.ehr_base_url):
            raise ValueError(
                "MEDTHINK_EHR_CLIENTS needs MEDTHINK_EHR_BASE_URL, the address that tokens are made out to, "
                "like https://medthink.hospital.example"
            )
        return self

    @field_validator("cors_origins", "ehr_frame_origins")
    @classmethod
    def _origins_are_exact(cls, value: str) -> str:
        for origin in _listed(value):
            if not re.fullmatch(r"https?://[^/\s*?#@]+", origin):
                raise ValueError(
                    f"{origin!r} is no origin: write scheme, host and port alone, like https://ehr.example.org"
                )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies_are_addresses(cls, value: str) -> str:
        for proxy in _listed(value):
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise ValueError(f"{error}: write addresses or networks, like 10.0.0.5,10.1.0.0/16") from error
        return value

    @model_validator(mode="after")
    def _tls_has_both_files(self) -> Self:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("MEDTHINK_TLS_CERT and MEDTHINK_TLS_KEY go together: set both, or neither")
        if self.audit_required and not self.audit:
            raise ValueError("MEDTHINK_AUDIT_REQUIRED needs a folder: set MEDTHINK_AUDIT")
        return self

    @model_validator(mode="after")
    def _others_are_asked_for_keys(self) -> Self:
        if not is_loopback(self.host) and not self.keys and not self.keys_file and not self.insecure:
            raise ValueError(
                f"the server would listen on {self.host} and ask nobody for a key: make keys with "
                "'python -m services.api.access create' and set MEDTHINK_KEYS_FILE, or set MEDTHINK_API_KEYS; "
                "or say --insecure (MEDTHINK_INSECURE=true) where something else guards it"
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
    def reader_count(self) -> int:
        """Processes that read for the guard; none where the guard is off or the article's."""
        if self.safety_profile != "default":
            return 0
        return self.safety_readers if self.safety_readers >= 0 else min(8, (os.cpu_count() or 1) // 4)

    @property
    def keys(self) -> tuple[str, ...]:
        return _listed(self.api_keys)

    @property
    def key_file(self) -> Path | None:
        return (ROOT / self.keys_file) if self.keys_file else None

    @property
    def origins(self) -> tuple[str, ...]:
        return _listed(self.cors_origins)

    @property
    def proxies(self) -> tuple[str, ...]:
        return _listed(self.trusted_proxies)

    @property
    def ehr_frames(self) -> tuple[str, ...]:
        return _listed(self.ehr_frame_origins)

    @property
    def audit_folder(self) -> Path | None:
        return (ROOT / self.audit) if self.audit else None


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


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


def read_settings(**flags: Any) -> Settings:
    """Settings from the environment, flags before it; raises `SettingsError` listing every problem."""
    try:
        return Settings(**flags)
    except ValidationError as error:
        lines = [_problem(e) for e in error.errors()]
        raise SettingsError("\n".join(lines)) from error


def _problem(error: Any) -> str:
    """A line for one problem; one that several settings make together names them itself."""
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    name = str(error["loc"][0]).upper()
    given = "" if name in _SECRET else f" (got {error['input']!r})"
    return f"MEDTHINK_{name}: {error['msg']}{given}"


_SECRET = ("API_KEYS", "MEMORY_KEYS", "CACHE_SECRET", "EHR_SECRET")  # never shown, wrong or right
