"""Token ids of past turns, so that only the new messages are encoded: the same ids as encoding everything from scratch.

Control tokens are hard borders and past answers carry no thought, so a turn's ids do not depend on its neighbours.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from services.api.memory.records import PastTurn
from services.contract.chat_format import ChatFormat, Message


class TurnWriter:
    """Writes a conversation turn by turn, with one chat format."""

    def __init__(self, chat_format: ChatFormat) -> None:
        self._format = chat_format

    @property
    def digest(self) -> str:
        """Names tokenizer and framing: ids that were stored under another one are encoded anew."""
        return self._format.digest

    def system_ids(self, system_prompt: str | None, tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """The turn that opens the prompt; empty without system prompt and tools."""
        if tools:
            return self._format.write_system_with_tools(system_prompt, tools)
        return self._format.write_turn(Message(role="system", content=system_prompt)) if system_prompt else []

    def input_ids(self, messages: Sequence[Message]) -> list[int]:
        """What the client said between two answers: user turns, tool responses, and answers that it brought along."""
        ids: list[int] = []
        for is_tool, run in itertools.groupby(messages, lambda m: m.role == "tool"):
            if is_tool:
                ids += self._format.write(list(run))
            else:
                for message in run:
                    ids += self._format.write_turn(message)
        return ids

    def reply_ids(self, reply: Message) -> list[int]:
        """An answer as later prompts have it: closed, without its thought."""
        return self._format.write_turn(reply)

    def past_ids(self, turn: PastTurn) -> list[int]:
        """A whole past turn: what was stored where it still holds, else encoded."""
        stored = turn.format_digest == self.digest
        given = list(turn.input_ids) if stored and turn.input_ids else self.input_ids(turn.messages)
        reply = list(turn.reply_ids) if stored and turn.reply_ids else self.reply_ids(turn.reply)
        return given + reply
