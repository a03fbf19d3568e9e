"""System prompt, history and new messages as token ids, and the check that they fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.api.errors import ContextLengthExceeded
from services.contract.chat_format import ChatFormat, Message

# <think>\n\n</think>\n\n and one token to say something: what a reply needs at the least.
SMALLEST_REPLY = 8


class PromptBuilder:
    """Builds the ids of a conversation up to, and without, the reply's opening."""

    def __init__(self, chat_format: ChatFormat, default_system_prompt: str) -> None:
        self._chat_format = chat_format
        self._default_system_prompt = default_system_prompt

    def build(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], max_model_len: int) -> list[int]:
        """Ids of closed turns. The default system prompt goes first when the conversation brings none.

        Raises `ContextLengthExceeded` when no reply would fit behind them.
        """
        turns = list(messages)
        if self._default_system_prompt and all(m.role != "system" for m in turns):
            turns.insert(0, Message(role="system", content=self._default_system_prompt))
        # Counting characters first keeps a megabyte of text from being tokenized just to be refused: in byte-level
        # BPE a token of these vocabularies is rarely longer than 16 characters.
        characters = sum(len(m.content) for m in turns)
        if characters > max_model_len * 64:
            raise _too_long(f"about {characters} characters", max_model_len)
        ids = self._chat_format.write(turns, tools)
        if len(ids) + SMALLEST_REPLY > max_model_len:
            raise _too_long(f"{len(ids)} tokens", max_model_len)
        return ids


def _too_long(length: str, max_model_len: int) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        f"the messages have {length}, and prompt and reply together may have at most {max_model_len} tokens: "
        "send fewer or shorter messages",
        param="messages",
    )
