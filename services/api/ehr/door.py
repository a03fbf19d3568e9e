"""The EHR door put together: what the app gives it, and the routes that it adds."""

from __future__ import annotations

import functools
import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fastapi import APIRouter

from services.api.ehr.audit import AuditTrail
from services.api.ehr.calls import Calls
from services.api.ehr.cases import Cases
from services.api.ehr.clients import read_clients
from services.api.ehr.feedback import FeedbackFile
from services.api.ehr.jwks import Keys
from services.api.ehr.links import Links
from services.api.ehr.pages import pages_router
from services.api.ehr.review import Reviewer
from services.api.ehr.routes import Hooks, hooks_router
from services.api.ehr.thinker import Thinker
from services.api.ehr.tokens import Verifier
from services.api.http.run import ChatDoor
from services.api.messages import Language
from services.api.safety.judge import Judge
from services.api.safety.policy import Policy, read_policy
from services.api.safety.store import PolicyStore
from services.contract.chat_format import ChatFormat


class EhrSettings(Protocol):
    """The settings that concern this door, under their own names; `docs/api.md` says what each means."""

    @property
    def ehr_auth(self) -> str: ...
    @property
    def ehr_clients(self) -> str: ...
    @property
    def ehr_base_url(self) -> str: ...
    @property
    def ehr_language(self) -> Language: ...
    @property
    def ehr_deadline_s(self) -> float: ...
    @property
    def ehr_thinking_budget(self) -> int: ...
    @property
    def ehr_answer_tokens(self) -> int: ...
    @property
    def ehr_link_ttl_s(self) -> float: ...
    @property
    def ehr_secret(self) -> str: ...
    @property
    def ehr_frames(self) -> Sequence[str]: ...
    @property
    def ehr_feedback(self) -> str: ...
    @property
    def ehr_audit(self) -> str: ...


def ehr_routers(
    door: ChatDoor, settings: EhrSettings, store: PolicyStore, chat_format: ChatFormat, root: Path
) -> tuple[APIRouter, APIRouter, Cases]:
    """Routes of the services and of the case page, and the runs, whose `run` goes beside the server.

    Files are relative to `root`. Raises `ClientsError`.
    """
    secret = hashlib.sha256(b"ehr\0" + (settings.ehr_secret.encode() or secrets.token_bytes(32))).digest()
    cases, links = Cases(settings.ehr_link_ttl_s), Links(settings.ehr_secret, settings.ehr_link_ttl_s)
    thinker = Thinker(door, settings.ehr_thinking_budget, settings.ehr_answer_tokens)
    reviewer = Reviewer(
        thinker.think,
        lambda text: len(chat_format.encode_text(text)),
        functools.partial(policy_in_force, store),
        cases,
        links,
        settings.ehr_deadline_s,
        secret,
    )
    hooks = Hooks(
        reviewer=reviewer,
        calls=Calls(),
        verifier=_verifier(settings, root) if settings.ehr_auth == "jwt" else None,
        feedback=FeedbackFile(root / settings.ehr_feedback if settings.ehr_feedback else None),
        audit=AuditTrail(root / settings.ehr_audit if settings.ehr_audit else None, secret),
        metrics=door.metrics,
        base_url=settings.ehr_base_url.rstrip("/"),
        language=settings.ehr_language,
    )
    return hooks_router(hooks), pages_router(cases, links, settings.ehr_frames), cases


def _verifier(settings: EhrSettings, root: Path) -> Verifier:
    return Verifier(read_clients(root / settings.ehr_clients) if settings.ehr_clients else {}, Keys())


def policy_in_force(store: PolicyStore) -> Policy:
    """The guard's policy; the shipped one under other profiles: orders are checked by its tables in any case."""
    judging = store.current
    return judging.policy if isinstance(judging, Judge) else read_policy()
