"""The guard as the request path meets it: opened once a turn, a gate for each choice, and a record when the choice is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from services.api.audit import trail as trails
from services.api.audit.trail import Judged
from services.api.logs import fields
from services.api.metrics import Metrics
from services.api.safety.audit import AuditFile, Record
from services.api.safety.gate import SentenceGate
from services.api.safety.judge import Judge
from services.api.safety.opening import Opening
from services.api.safety.readers import Readers
from services.api.safety.second_opinion import SecondOpinion
from services.api.safety.store import PolicyStore
from services.api.safety.verdicts import CHECK_FAILED, SECOND_OPINION, Verdict

log = logging.getLogger(__name__)

OPINION_LIMIT_S = 20.0  # a word takes a fraction of a second; what takes longer stands in a queue


class Guard:
    """Everything that judging needs, built once by the app."""

    def __init__(
        self,
        store: PolicyStore,
        audit: AuditFile,
        metrics: Metrics,
        check_limit_s: float,
        opinion: SecondOpinion | None = None,
        readers: Readers | None = None,
    ) -> None:
        self.opinion = opinion
        self.readers = readers
        self._store = store
        self._audit = audit
        self._metrics = metrics
        self._check_limit_s = check_limit_s

    def open(self, question: Question) -> TurnGuard | None:
        """The guard of one turn under the policy that is in force now; `None` when the guard is off."""
        judging = self._store.current
        return TurnGuard(judging, question, self._check_limit_s, self) if judging is not None else None

    def record(self, question: Question, choice: int, gate: SentenceGate, policy: str, complete: bool) -> None:
        """Counts, logs and keeps the verdict of one choice."""
        found, metrics = gate.judgement, self._metrics
        mode = "stream" if question.streaming else "whole"
        metrics.safety_replies.labels(verdict=found.verdict.word, mode=mode).inc()
        for rule, verdict in sorted({(hit.rule, hit.verdict.word) for hit in found.hits}):
            metrics.safety_hits.labels(rule=rule, verdict=verdict, mode=mode).inc()
        for seconds in gate.check_s:
            metrics.safety_check_s.observe(seconds)
        record = Record(question.request_id, choice, policy, mode, found, gate.sent, sum(gate.check_s), complete)
        self._audit.write(record)
        trails.current().judged.append(Judged(choice, found.verdict.word, found.rules, policy))
        log.info(
            "reply judged",
            extra=fields(
                response_id=question.request_id,
                choice=choice,
                verdict=found.verdict.word,
                rules=",".join(found.rules) or None,
                policy=policy,
                check_ms=round(sum(gate.check_s) * 1000, 3),
            ),
        )


@dataclass(frozen=True, slots=True)
class Question:
    """What a reply is judged against. `messages` are (role, text), oldest first; `amends_text` false for JSON answers."""

    request_id: str
    messages: Sequence[tuple[str, str]]
    system_prompt: str | None
    streaming: bool
    amends_text: bool = True
    shows_reasoning: bool = True


class TurnGuard:
    """Gates of one turn: each choice is judged by itself, all by the same policy."""

    def __init__(self, judging: Opening, question: Question, check_limit_s: float, guard: Guard) -> None:
        self._judging = judging
        self._question = question
        self._check_limit_s = check_limit_s
        self._guard = guard

    async def gate(self) -> SentenceGate:
        """A gate for one choice. The conversation is assessed here, before the first token is shown."""
        question, judging, readers = self._question, self._judging, self._guard.readers
        if readers is not None and isinstance(judging, Judge):
            case = await readers.open(judging, question.messages, question.system_prompt)
        else:
            case = judging.open(question.messages, question.system_prompt)
        return SentenceGate(
            self._judging,
            case,
            streaming=question.streaming,
            amends_text=question.amends_text,
            shows_reasoning=question.shows_reasoning,
            check_limit_s=self._check_limit_s,
        )

    async def second_opinion(self, choice: int, gate: SentenceGate) -> None:
        """Asks for one, when that is switched on and there is an answer to judge. A failure blocks, as any check's does."""
        opinion = self._guard.opinion
        if opinion is None or gate.is_blocked or not gate.answer.strip():
            return
        try:
            async with asyncio.timeout(OPINION_LIMIT_S):
                asked = f"{self._question.request_id}-{choice}"
                verdict = await opinion.ask(asked, self._question.messages, gate.answer)
        except Exception as error:  # noqa: BLE001 - fail closed, whatever it was
            log.error("second opinion failed: %s", type(error).__name__)
            gate.raise_to(Verdict.BLOCK, CHECK_FAILED)
        else:
            gate.raise_to(verdict, SECOND_OPINION)

    def close(self, choice: int, gate: SentenceGate, complete: bool) -> None:
        """Records the choice. `complete` is false when the client left or the engine failed before its end."""
        self._guard.record(self._question, choice, gate, self._judging.label, complete)
