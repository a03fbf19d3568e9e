"""Events as what a client is shown: reasoning beside content, or inside it between the article's markers.

Streaming sends each delta, non-streaming joins them all, so both show the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.api.events import (
    Answer,
    Event,
    Finished,
    Reasoning,
    ReasoningDone,
    Replaced,
    Safety,
    TokenLogprobs,
    ToolCallDelta,
)
from services.api.thinking.options import ThinkingOptions
from services.api.thinking.present import Annotator, SentenceBuffer
from services.contract.chat_format import ANSWER_BEGIN, REASONING_BEGIN, REASONING_END


@dataclass(frozen=True, slots=True)
class Delta:
    """One step of one choice. Empty fields are not sent."""

    reasoning: str = ""
    content: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    tool_call: ToolCallDelta | None = None
    replaces: Safety | None = None  # set: `content` stands in place of everything that was shown before


class ChoicePresenter:
    """One choice's events as deltas, by the request's options."""

    def __init__(self, options: ThinkingOptions, annotator: Annotator) -> None:
        self._options = options
        self._annotator = annotator
        self._sentences = SentenceBuffer()
        self._reasoning_begun = False
        self._reasoning_over = False
        self._answer_begun = False

    def take(self, event: Event) -> Iterator[Delta]:
        if isinstance(event, Reasoning):
            yield from self._reasoning(event.text)
        elif isinstance(event, ReasoningDone):
            yield from self._end_reasoning()
        elif isinstance(event, Answer):
            yield from self._end_reasoning()
            marker = ANSWER_BEGIN if self._options.in_content and not self._answer_begun else ""
            self._answer_begun = True
            yield Delta(content=marker + event.text, logprobs=event.logprobs)
        elif isinstance(event, ToolCallDelta):
            yield from self._end_reasoning()
            yield Delta(tool_call=event)
        elif isinstance(event, Replaced):
            yield from self._end_reasoning()
            marker = ANSWER_BEGIN if self._options.in_content and not self._answer_begun else ""
            self._answer_begun = True
            if marker:
                yield Delta(content=marker)
            yield Delta(content=event.text, replaces=event.safety)
        elif isinstance(event, Finished):
            yield from self._end_reasoning()

    def _reasoning(self, text: str) -> Iterator[Delta]:
        if not self._options.shown:
            return
        if self._options.annotated:
            # One by one: a pattern that reaches over a sentence's end would find more in a larger delta.
            text = "".join(self._annotator.annotate(sentence) for sentence in self._sentences.feed(text))
        if text:
            yield self._shown_reasoning(text)

    def _shown_reasoning(self, text: str) -> Delta:
        marker = "" if self._reasoning_begun else REASONING_BEGIN
        self._reasoning_begun = True
        return Delta(reasoning=text, content=marker + text if self._options.in_content else "")

    def _end_reasoning(self) -> Iterator[Delta]:
        if self._reasoning_over:
            return
        rest = self._sentences.end()
        if rest:
            yield self._shown_reasoning(self._annotator.annotate(rest))
        self._reasoning_over = True
        if self._reasoning_begun and self._options.in_content:
            yield Delta(content=REASONING_END)
