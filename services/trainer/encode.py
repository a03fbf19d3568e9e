"""Conversations to training rows: ids and labels, with the reply supervised and everything before it masked.

All ids come from `contract.chat_format`, so the model is trained on what it will be served with. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from services.contract.chat_format import END_THINK, ChatFormat, Message

IGNORED = -100  # the label that PyTorch's cross-entropy leaves out


@dataclass(frozen=True)
class Example:
    """A conversation whose last message is the reply to learn.

    With `enable_thinking` the reply begins with its reasoning; without, the prompt holds the empty thought and only the
    answer follows. `supervise="answer"` masks the reasoning too, as for a thought that was cut off by a budget.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    enable_thinking: bool = True
    supervise: Literal["reply", "answer"] = "reply"


@dataclass(frozen=True)
class Row:
    """`labels[i]` is `ids[i]` where the model is to learn it, `IGNORED` elsewhere; not shifted."""

    ids: list[int]
    labels: list[int]


class EncodeError(ValueError):
    """An example from which no row can be made."""


def encode(example: Example, chat_format: ChatFormat) -> Row:
    """The row of one example: supervised through `<|im_end|>`, without the newline that follows it.

    Raises `EncodeError` when the example does not end in a reply, or thinks without any reasoning: a supervised empty
    thought would teach the model not to think.
    """
    if not example.messages or example.messages[-1].role != "assistant":
        raise EncodeError("the last message of an example must be the assistant's")
    *history, reply = example.messages
    thinks = example.enable_thinking
    if thinks and example.supervise == "reply" and not (reply.reasoning_content or "").strip():
        raise EncodeError("a reply without reasoning cannot be learned with thinking on")
    prompt = chat_format.write_prompt(history, example.tools, thinks)
    written = chat_format.write_reply(reply, with_reasoning=thinks)
    masked = len(prompt)
    if thinks and example.supervise == "answer":
        answer = written.index(chat_format.control_ids[END_THINK]) + 1
        masked += answer + len(chat_format.encode_text("\n\n"))
    ids = prompt + written
    return Row(ids, [IGNORED] * masked + ids[masked:])
