"""System prompt, history and new messages as token ids, and the check that they fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.api.errors import ContextLengthExceeded
from services.contract.chat_format import END_THINK, ChatFormat, Message, template_json

# Tokens that a reply needs at the least: a word of thought and a word of answer.
SMALLEST_REPLY = 8


class PromptBuilder:
    """Builds the ids of a conversation up to, and without, the reply's opening."""

    def __init__(self, chat_format: ChatFormat, default_system_prompt: str) -> None:
        self._chat_format = chat_format
        self._default_system_prompt = default_system_prompt
        self._frame = _longest_frame(chat_format)

    def room(self, prompt_ids: Sequence[int], max_model_len: int) -> int:
        """Most tokens of a reply behind `prompt_ids`: what the context has left, less the frame that we write around it."""
        return max_model_len - len(prompt_ids) - self._frame

    def system_prompt(self, messages: Sequence[Message], system_prompt: str | None = None) -> str | None:
        """The system text that the model is given: the conversation's own, else `system_prompt`, else the default."""
        own = "\n".join(m.content for m in messages if m.role == "system")
        return own or (self._default_system_prompt if system_prompt is None else system_prompt) or None

    def build(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        max_model_len: int,
        system_prompt: str | None = None,
    ) -> list[int]:
        """Ids of closed turns. `system_prompt`, or else the default one, goes first when the conversation brings none.

        Raises `ContextLengthExceeded` when no reply would fit behind them.
        """
        turns = list(messages)
        prompt = self.system_prompt(messages, system_prompt)
        if prompt and all(m.role != "system" for m in turns):
            turns.insert(0, Message(role="system", content=prompt))
        self.require_short(turns, tools, max_model_len)
        return self.require_room(self._chat_format.write(turns, tools), max_model_len)

    def require_short(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], max_model_len: int) -> None:
        """Keeps a megabyte of text from being tokenized just to be refused; raises `ContextLengthExceeded`."""
        # In byte-level BPE a token of these vocabularies is rarely longer than 16 characters.
        characters = sum(len(m.content) + sum(len(c.arguments) for c in m.tool_calls) for m in messages)
        characters += len(template_json(list(tools))) if tools else 0
        if characters > max_model_len * 64:
            raise _too_long(f"about {characters} characters", max_model_len)

    def require_room(self, ids: list[int], max_model_len: int) -> list[int]:
        """`ids`, when a reply fits behind them; raises `ContextLengthExceeded`."""
        if self.room(ids, max_model_len) < SMALLEST_REPLY:
            raise _too_long(f"{len(ids)} tokens", max_model_len)
        return ids

    def window_budget(self, max_model_len: int, reply_tokens: int | None) -> int:
        """Most tokens of a prompt with history: room for the reply is kept free, at most half of the context.

        `reply_tokens`: most tokens that the request lets the reply have; `None`: a quarter of the context is kept.
        """
        kept = max_model_len // 4 if reply_tokens is None else min(reply_tokens, max_model_len // 2)
        return max_model_len - self._frame - max(kept, SMALLEST_REPLY)


def _longest_frame(chat_format: ChatFormat) -> int:
    """Tokens of a reply that are written for the model: its opening, and the closing of a thought that was cut."""
    closing = [*chat_format.encode_text("\n"), chat_format.control_ids[END_THINK], *chat_format.encode_text("\n\n")]
    with_thought = len(chat_format.write_reply_opening(True)) + len(closing)
    return max(with_thought, len(chat_format.write_reply_opening(False)))


def _too_long(length: str, max_model_len: int) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        f"the messages have {length}, and prompt and reply together may have at most {max_model_len} tokens: "
        "send fewer or shorter messages",
        param="messages",
    )
