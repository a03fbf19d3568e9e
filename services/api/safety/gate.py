"""Stands between the model and the reader of one choice: nothing passes that was not judged, sentence by sentence.

Streaming, sentences leave as soon as they are judged; an urgent sentence that the user's own words call for goes first. Not
streaming, all is held until the verdict: an amended reply has its sentence in front, a blocked one is the fallback alone.
The verdict is the same either way.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

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
from services.api.safety.case import Case
from services.api.safety.sentences import SentenceCutter
from services.api.safety.verdicts import CHECK_FAILED, CHECK_TIMEOUT, Hit, Judgement, Part, Verdict, judge

Place = Literal["front", "after", "none"]


class Judging(Protocol):
    """What the gate asks of a judge; `judge.Judge` and the article's profile both are one."""

    @property
    def label(self) -> str: ...

    def sentence(self, case: Case, part: Part, original: str, start: int) -> list[Hit]: ...

    def end(self, case: Case) -> Judgement: ...

    def fallback(self, case: Case) -> str: ...

    def additions(self, case: Case, judgement: Judgement) -> Sequence[str]: ...

    def early_additions(self, case: Case) -> Sequence[str]: ...


@dataclass(slots=True)
class Sent:
    """What really left, for the record: characters by part, and whether a sentence of ours was among them."""

    reasoning: int = 0
    answer: int = 0
    fallback: bool = False
    addition: Place = "none"


@dataclass(slots=True)
class _Channel:
    """One part of the reply: its cutter, how much of it was judged, and what came with pieces that wait."""

    part: Part
    cutter: SentenceCutter = field(default_factory=SentenceCutter)
    received: int = 0
    judged: int = 0
    waiting: list[tuple[int, tuple[TokenLogprobs, ...]]] = field(default_factory=list)

    def take_logprobs(self) -> tuple[TokenLogprobs, ...]:
        """Those of deltas whose text has been judged to its end."""
        ready: list[TokenLogprobs] = []
        while self.waiting and self.waiting[0][0] <= self.judged:
            ready += self.waiting.pop(0)[1]
        return tuple(ready)


class SentenceGate:
    """The gate of one choice. Feed it every event; when `is_blocked`, stop the model and feed the `Finished`."""

    def __init__(
        self,
        judging: Judging,
        case: Case,
        *,
        streaming: bool,
        amends_text: bool = True,
        shows_reasoning: bool = True,
        check_limit_s: float = 1.0,
    ) -> None:
        """What is shown is judged: reasoning that is not shown (`shows_reasoning` false) passes to be dropped.

        `amends_text` false: a sentence of ours would break what the client parses (JSON), so only the verdict tells.
        """
        self._judging = judging
        self._case = case
        self._streaming = streaming
        self._amends_text = amends_text
        self._shows_reasoning = shows_reasoning
        self._limit_s = check_limit_s
        self._channels = {part: _Channel(part) for part in ("reasoning", "answer")}
        self._held: list[Event] = []
        self._calls: list[ToolCallDelta] = []
        self._judgement: Judgement | None = None
        self._answer_begun = False
        self._early: tuple[str, ...] = ()
        self.is_blocked = any(hit.verdict is Verdict.BLOCK for hit in case.hits)
        self.sent = Sent()
        self.check_s: list[float] = []  # seconds, one for each sentence and one for the end

    @property
    def judgement(self) -> Judgement:
        """So far, or of the whole reply once it has ended."""
        return self._judgement or judge(self._case.hits)

    @property
    def safety(self) -> Safety:
        found = self.judgement
        return Safety(found.verdict.word, found.rules, self._judging.label)

    def take(self, event: Event) -> Iterator[Event]:
        """What may leave now. After a block only `Finished` still has an answer."""
        if isinstance(event, Finished):
            yield from self._finish(event)
        elif self.is_blocked:
            return
        elif isinstance(event, Reasoning) and not self._shows_reasoning:
            yield event
        elif isinstance(event, Reasoning):
            yield from self._feed("reasoning", event.text)
        elif isinstance(event, ReasoningDone):
            yield from self._flush("reasoning")
            if not self.is_blocked:
                yield from self._release(event)
        elif isinstance(event, Answer):
            yield from self._flush("reasoning")
            yield from self._feed("answer", event.text, event.logprobs)
        elif isinstance(event, ToolCallDelta):
            self._calls.append(event)  # judged when they are whole: half a JSON text has no sentences

    def _feed(self, part: Part, text: str, logprobs: tuple[TokenLogprobs, ...] = ()) -> Iterator[Event]:
        if self.is_blocked:
            return
        channel = self._channels[part]
        channel.received += len(text)
        if logprobs:
            channel.waiting.append((channel.received, logprobs))
        yield from self._judge(channel, channel.cutter.add(text))

    def _flush(self, part: Part) -> Iterator[Event]:
        if not self.is_blocked:
            channel = self._channels[part]
            yield from self._judge(channel, channel.cutter.end())

    def _judge(self, channel: _Channel, sentences: list[str]) -> Iterator[Event]:
        for sentence in sentences:
            hits = self._timed_sentence(channel, sentence)
            channel.judged += len(sentence)
            if any(hit.verdict is Verdict.BLOCK for hit in hits):
                self.is_blocked = True
                return
            if channel.part == "reasoning":
                yield from self._release(Reasoning(sentence))
            else:
                yield from self._release_answer(Answer(sentence, channel.take_logprobs()))

    def _release_answer(self, event: Answer) -> Iterator[Event]:
        if not self._answer_begun and event.text.strip():
            self._answer_begun = True
            if self._streaming and self._amends_text:
                self._early = tuple(self._judging.early_additions(self._case))
            if self._early:
                self.sent.addition = "front"
                yield from self._release(Answer("\n\n".join(self._early) + "\n\n"))
        yield from self._release(event)

    def _release(self, event: Event) -> Iterator[Event]:
        if not self._streaming:
            self._held.append(event)
            return
        yield self._counted(event)

    def _counted(self, event: Event) -> Event:
        if isinstance(event, Reasoning):
            self.sent.reasoning += len(event.text)
        elif isinstance(event, Answer):
            self.sent.answer += len(event.text)
        return event

    def flush(self) -> Iterator[Event]:
        """The model has said all: judges what was held for its end. `take(Finished)` does it as well."""
        yield from self._flush("reasoning")
        yield from self._flush("answer")

    @property
    def answer(self) -> str:
        """What was judged of the answer so far."""
        return "".join(sentence.original for sentence in self._case.answer)

    def raise_to(self, verdict: Verdict, rule: str) -> None:
        """Another check's word on the whole answer; it can make the verdict stricter and nothing else."""
        if verdict is not Verdict.PASS:
            self._case.hits.append(Hit(rule, verdict, rule, "answer", 0, self._channels["answer"].judged))

    def _finish(self, finished: Finished) -> Iterator[Event]:
        yield from self.flush()
        calls = self._judge_calls() if not self.is_blocked and self._calls else ()
        if not self.is_blocked:
            # A turn that only calls tools is no reply yet: what it lacks is judged when the answer comes.
            only_calls = bool(self._calls) and not self._channels["answer"].received
            self._judgement = judge(self._case.hits) if only_calls else self._timed_end()
            self.is_blocked = self._judgement.verdict is Verdict.BLOCK
        if self.is_blocked:
            yield from self._block(finished)
            return
        for call in calls:
            yield from self._release(call)
        yield from self._amend()
        yield _with_safety(finished, self.safety, finished.reason)

    def _amend(self) -> Iterator[Event]:
        """Our sentence in front of what is held, or behind what has left; then what was held."""
        additions: list[str] = []
        if self.judgement.verdict is Verdict.AMEND and self._amends_text:
            additions = [
                text for text in self._judging.additions(self._case, self.judgement) if text not in self._early
            ]
        addition = "\n\n".join(additions)
        if addition and self._streaming:
            self.sent.addition = "after" if not self._early else "front"
            yield self._counted(Answer("\n\n" + addition if self._answer_begun else addition))
        elif addition:
            self.sent.addition = "front"
            at = next((n for n, event in enumerate(self._held) if isinstance(event, Answer)), len(self._held))
            self._held.insert(at, Answer(addition + ("\n\n" if at < len(self._held) else "")))
        yield from map(self._counted, self._held)
        self._held.clear()

    def _block(self, finished: Finished) -> Iterator[Event]:
        """The fallback as the last content; in a stream with the word that it replaces what was shown."""
        self._held.clear()
        self._calls.clear()
        fallback = self._judging.fallback(self._case)
        self.sent.fallback = True
        safety = self.safety
        if self._streaming and self._answer_begun:
            yield self._counted(Answer("\n\n"))
        self.sent.answer += len(fallback)
        yield Replaced(fallback, safety)
        yield _with_safety(finished, safety, "content_filter")

    def _judge_calls(self) -> Sequence[ToolCallDelta]:
        """The calls, unless they are to be blocked: people read their arguments too."""
        texts: dict[int, str] = {}
        for call in self._calls:
            texts[call.index] = texts.get(call.index, "") + call.arguments
        channel = _Channel("answer", judged=self._channels["answer"].judged)
        for text in texts.values():
            cutter = SentenceCutter()
            plain = _texts_of(text)
            for sentence in [*cutter.add(plain), *cutter.end()]:
                hits = self._timed_sentence(channel, sentence)
                channel.judged += len(sentence)
                if any(hit.verdict is Verdict.BLOCK for hit in hits):
                    self.is_blocked = True
                    return ()
        return self._calls

    def _timed_sentence(self, channel: _Channel, sentence: str) -> list[Hit]:
        begun = time.perf_counter()
        hits = self._judging.sentence(self._case, channel.part, sentence, channel.judged)
        return hits if self._in_time(begun, channel) else [*hits, self._case.hits[-1]]

    def _timed_end(self) -> Judgement:
        begun = time.perf_counter()
        found = self._judging.end(self._case)
        return found if self._in_time(begun, self._channels["answer"]) else judge(self._case.hits)

    def _in_time(self, begun: float, channel: _Channel) -> bool:
        """Takes the time; a check that ran too long blocks, since a slow check is a broken one."""
        self.check_s.append(time.perf_counter() - begun)
        if self.check_s[-1] <= self._limit_s:
            return True
        at = channel.judged
        self._case.hits.append(Hit(CHECK_FAILED, Verdict.BLOCK, CHECK_TIMEOUT, channel.part, at, at))
        return False


def _with_safety(finished: Finished, safety: Safety, reason: Any) -> Finished:
    stop_reason = finished.stop_reason if reason == finished.reason else None
    return Finished(reason, finished.usage, stop_reason, finished.thinking_truncated, safety)


def _texts_of(arguments: str) -> str:
    """Every text in a call's arguments, a line each; what is no JSON is read as it stands."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    found: list[str] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, dict):
            waiting += [*item.values(), *item.keys()]
        elif isinstance(item, list):
            waiting += item
    return "\n".join(reversed(found))
