"""What must not stand in a text that is trained on. Looks at one text at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator

from services.contract.chat_format import Message
from services.trainer.prepare.personal_data import find_personal_data
from services.trainer.prepare.problems import Problem
from services.trainer.prepare.readers import Record

# Qwen3's control tokens and the article's markers, spelled loosely: `< / THINK >` would teach the model a tag too.
_TAG = re.compile(r"<\s*/?\s*(?:think|tool_call|tool_response)\s*>|<\|\s*\w+\s*\|>", re.IGNORECASE)
_CHARACTER = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd\ufffe\uffff]")


def check_record(record: Record) -> Iterator[Problem]:
    """Every problem with every text of the conversation."""
    for number, message in enumerate(record.messages, 1):
        for name, text in _texts(message):
            of = f"in the {message.role}'s {name}" + (f" (message {number})" if len(record.messages) > 2 else "")
            yield from _check_text(record.where, of, text, is_reply=message.role == "assistant")


def _texts(message: Message) -> Iterator[tuple[str, str]]:
    yield "content", message.content
    if message.reasoning_content:
        yield "reasoning", message.reasoning_content
    for call in message.tool_calls:
        yield "tool call", call.arguments


def _check_text(where: str, of: str, text: str, is_reply: bool) -> Iterator[Problem]:
    tags = [match[0] for match in _TAG.finditer(text)]
    if is_reply and any("think" in tag.lower() for tag in tags):
        yield Problem(where, "thinking", f"{', '.join(tags[:3])} {of}, where no reasoning opens or closes")
    elif tags:
        yield Problem(where, "marker", f"{', '.join(dict.fromkeys(tags))} {of}")
    for character in dict.fromkeys(_CHARACTER.findall(text)):
        yield Problem(where, "character", f"U+{ord(character):04X} {of}")
    for kind, masked in find_personal_data(text):
        yield Problem(where, kind, f"{masked} {of}")
