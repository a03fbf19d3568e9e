"""The model's part: a chart's text as one turn through the ordinary door, so that admission, guard and records hold for it."""

from __future__ import annotations

import contextlib
import time
from typing import Final

from services.api.ehr.cases import Case
from services.api.events import Answer, Finished, Reasoning, Replaced
from services.api.http.chunks import Head
from services.api.http.run import ChatDoor, Run
from services.api.http.schemas import ChatMessage, ChatRequest

ASKED: Final = {
    "zh": "请根据以下病历要点，为接诊医生写简短概要：先用一句话概括，再列出最多五个需要注意的问题。"
    "不要开具处方，不要给出具体剂量，资料不足时明确说明。\n\n",
    "en": "From these facts of a chart, write a short summary for the clinician: one sentence first, then at most five points "
    "that need attention. Do not prescribe, name no doses, and say where data are lacking.\n\n",
}


class Thinker:
    """Runs the model for cases."""

    def __init__(self, door: ChatDoor, thinking_budget: int, answer_tokens: int) -> None:
        """Both in tokens. No budget of thought: the model answers at once."""
        self._door = door
        self._budget = thinking_budget
        self._answer_tokens = answer_tokens

    async def think(self, case: Case, text: str, tenant: str) -> None:
        """Fills a case's frames and, at the end, its answer; an error is kept in the case, for all who wait for it."""
        wire = ChatRequest(
            messages=[ChatMessage(role="user", content=ASKED[case.language] + text)],
            stream=True,
            max_tokens=self._budget + self._answer_tokens,
            enable_thinking=self._budget > 0,
            thinking_budget=self._budget or None,
        )
        case.model, case.demo = self._door.names.default, self._door.names.demo is not None
        run = Run(self._door, wire, Head(f"case-{case.id}", int(time.time()), case.model), tenant)
        answer = ""
        try:
            async with contextlib.aclosing(run.events()) as events:
                async for _, event in events:
                    if isinstance(event, Reasoning):
                        case.add({"reasoning": event.text})
                    elif isinstance(event, Answer):
                        answer += event.text
                        case.add({"answer": event.text})
                    elif isinstance(event, Replaced):
                        answer = event.text
                        case.add({"replaced": event.text})
                    elif isinstance(event, Finished):
                        case.verdict = event.safety.verdict
        except Exception as error:  # noqa: BLE001 - mapped to an ApiError, and logged where it is ours
            case.error = run.to_error(error)
            return
        case.answer = answer.strip()
