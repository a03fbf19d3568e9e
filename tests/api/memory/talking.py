"""A conversation with a service under test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.contract.chat_format import DEFAULT_SYSTEM_PROMPT, ChatFormat, Message
from tests.fakes import FakeEngine, Pen
from tests.running import Running, frames_of

ANSWERS = ("多喝水，注意休息。", "可以散步。", "每天六到八小时。", "不需要。", "可以。")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def talker(pen: Pen, answers: Sequence[str] = ANSWERS, **options: Any) -> FakeEngine:
    """A model that gives these answers in turn, each after a thought."""
    left = iter(answers)

    def reply(request: Any) -> list[int]:
        if request.request_id.startswith("warm-up"):
            return pen.answer("好")
        return pen.thought("想一想。", next(left))

    return FakeEngine(pen.chat_format, reply, **options)


async def say(service: Running, text: str, session: str = "s1", **more: Any) -> dict[str, Any]:
    answer = await service.chat(model="Qwen3-1.7B", session_id=session, messages=[user(text)], **more)
    assert answer.status_code == 200, answer.text
    return answer.json() if not more.get("stream") else frames_of(answer.text)[-1]


async def stored(service: Running, session: str = "s1", **options: Any) -> dict[str, Any]:
    answer = await service.client.get(f"/v1/sessions/{session}", **options)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def from_scratch(chat_format: ChatFormat, *texts: str, system: str = DEFAULT_SYSTEM_PROMPT) -> list[int]:
    """The prompt of a conversation whose texts are the user's and the assistant's in turn."""
    roles = ("user", "assistant")
    messages = [Message.model_validate({"role": roles[n % 2], "content": text}) for n, text in enumerate(texts)]
    whole = [Message(role="system", content=system), *messages]
    return [*chat_format.write(whole), *chat_format.write_reply_opening(True)]
