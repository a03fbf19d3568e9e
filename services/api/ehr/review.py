"""One hook call: the record, what the tables say, what the model says in time, as at most three cards."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Final

from services.api.ehr.cards import MOST_CARDS, card, cards_of, first_sentence, safe_markdown
from services.api.ehr.cases import Case, Cases
from services.api.ehr.critical import find_problems, unknown_orders
from services.api.ehr.fhir import add_orders, read_record
from services.api.ehr.findings import Finding, say
from services.api.ehr.hooks import NECESSARY, TYPES, Call
from services.api.ehr.links import Links
from services.api.ehr.outcomes import HookError
from services.api.ehr.patient_text import LIMIT_TOKENS, patient_text
from services.api.ehr.record import Record
from services.api.errors import ApiError
from services.api.messages import Language
from services.api.safety.policy import Policy

MARGIN_S: Final = 0.25  # of the deadline is kept for writing the answer
_MODEL_SUMMARY_FROM = 4  # characters: a shorter first sentence says nothing


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the EHR as its token says it (or `anonymous`), the address that it knows us by, and its reader's language."""

    issuer: str
    base_url: str
    language: Language
    tenant: str = ""
    jti: str = ""


@dataclass(slots=True)
class Reviewed:
    """The answer to a call, and what the audit keeps of it."""

    cards: list[dict[str, Any]]
    case: Case | None = None
    in_time: bool = True
    findings: list[Finding] = field(default_factory=list)
    foreign: int = 0


class Reviewer:
    """Answers calls. `think` fills a case with what the model says of a text, for a tenant."""

    def __init__(
        self,
        think: Callable[[Case, str, str], Any],
        count: Callable[[str], int],
        policy: Callable[[], Policy],
        cases: Cases,
        links: Links,
        deadline_s: float,
        secret: bytes,
    ) -> None:
        self._think = think
        self._count = count
        self._policy = policy
        self._cases = cases
        self._links = links
        self._deadline_s = deadline_s
        self._secret = secret

    async def review(self, call: Call, caller: Caller, begun: float) -> Reviewed:
        """Always inside the deadline, counted from `begun` (monotonic seconds).

        Raises `HookError` 412 without the necessary data, and the model's `ApiError` when the tables have nothing to say either.
        """
        today = datetime.now(UTC).date()
        record, findings, text, unknown = await asyncio.to_thread(self._read, call, caller.language, today)
        missing = [key for key in NECESSARY if not _has(record, key)]
        if missing:
            raise HookError(
                412,
                "The prefetch key patient must hold the Patient of context.patientId; nothing is fetched from fhirServer.",
                expression="prefetch.patient",
            )
        cards = cards_of(findings, caller.language)
        reviewed = Reviewed(cards, findings=findings, foreign=record.foreign + record.foreign_orders)
        try:
            case = self._case(call, caller, record, text, today)
        except ApiError:
            if not findings:
                raise
            return reviewed
        reviewed.case = case
        with self._cases.waiting(case):
            reviewed.in_time = await case.wait_done(begun + self._deadline_s - MARGIN_S)
            if not reviewed.in_time:
                case.published = True  # from here on a link leads to it
        if case.error is not None:
            if not findings:
                raise case.error
            return reviewed
        gaps = _joined(_gaps(record, unknown, caller.language), _demo(case, caller.language))
        cards.append(self._model_card(case, caller, reviewed.in_time, gaps))
        assert len(cards) <= MOST_CARDS
        return reviewed

    def _read(self, call: Call, language: Language, today: date) -> tuple[Record, list[Finding], str, int]:
        record = read_record(call.patient_id, call.prefetch, TYPES, today)
        chart = patient_text(
            record, language, self._count, today, LIMIT_TOKENS
        )  # without the orders: patient-view's text
        if call.draft_orders is not None:
            add_orders(record, call.draft_orders, call.selections, today)
        policy = self._policy()
        return record, find_problems(record, policy, language, today), chart, unknown_orders(record, policy)

    def _case(self, call: Call, caller: Caller, record: Record, chart: str, today: date) -> Case:
        """The run for this chart: the one for these very orders, else the one that the chart's opening began, else a new one."""
        text = chart
        if call.draft_orders is not None:
            text = patient_text(record, caller.language, self._count, today, LIMIT_TOKENS)
        keys = [self._key(call, caller, one) for one in (text, chart)]
        found = next((case for key in keys if (case := self._cases.known(key)) is not None), None)
        if found is not None:
            return found
        tenant = f"ehr:{caller.issuer}"
        return self._cases.start(keys[0], caller.language, lambda case: self._think(case, text, tenant))

    def _key(self, call: Call, caller: Caller, text: str) -> str:
        parts = "\0".join((caller.issuer, caller.tenant, call.patient_id, caller.language, text))
        return hmac.new(self._secret, parts.encode(), hashlib.sha256).hexdigest()

    def _model_card(self, case: Case, caller: Caller, in_time: bool, gaps: str) -> dict[str, Any]:
        language = caller.language
        url = f"{caller.base_url}/cases/{case.id}?t={self._links.token(case.id)}"
        case.published = True
        links = [(say(language, "查看完整分析", "Open the full analysis"), url)]
        if not in_time:
            summary = say(language, "AI正在分析，点此查看", "AI is still analysing: open the link to follow")
            detail = say(
                language,
                "分析仍在进行，链接页面会持续更新。",
                "The analysis goes on; the linked page shows it as it comes.",
            )
            return card(language, "summary", "info", summary, _joined(detail, gaps), links=links)
        detail = safe_markdown(case.answer) or say(language, "模型没有给出内容。", "The model said nothing.")
        front = first_sentence(safe_markdown(case.answer))
        if len(front) < _MODEL_SUMMARY_FROM:
            front = say(language, "AI概要", "AI summary")
        indicator: Any = "info" if case.verdict in ("pass", "unchecked") else "warning"
        return card(language, "summary", indicator, front, _joined(detail, gaps), links=links)


def _has(record: Record, key: str) -> bool:
    return record.has_patient if key == "patient" else key not in record.missing


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _demo(case: Case, language: Language) -> str:
    return say(language, "**演示模型，不是医学意见。**", "**Demo model: not medicine.**") if case.demo else ""


def _gaps(record: Record, unknown: int, language: Language) -> str:
    """What the cards could not know, in one list."""
    told = []
    if record.missing:
        told.append(say(language, f"未提供：{'、'.join(record.missing)}", f"not provided: {', '.join(record.missing)}"))
    if record.failed:
        told.append(
            say(language, f"获取失败：{'、'.join(record.failed)}", f"could not be read: {', '.join(record.failed)}")
        )
    if record.partial:
        told.append(
            say(language, f"仅有首页：{'、'.join(record.partial)}", f"first page only: {', '.join(record.partial)}")
        )
    if record.foreign:
        told.append(
            say(
                language,
                f"{record.foreign} 条资料属于另一位患者，已排除",
                f"{record.foreign} resource(s) of another patient left out",
            )
        )
    if unknown:
        told.append(
            say(
                language,
                f"{unknown} 种药物不在药品表中，未作核查",
                f"{unknown} ordered medicine(s) not in the drug table, not checked",
            )
        )
    if not told:
        return ""
    title = say(language, "资料不完整：", "Incomplete data: ")
    return f"**{title}** " + say(language, "；", "; ").join(told)
