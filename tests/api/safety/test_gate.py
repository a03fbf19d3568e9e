"""The gate: nothing leaves unjudged, a block ends as a valid reply, and the verdict does not depend on chunks or on the mode."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from services.api.events import (
    Answer,
    Event,
    Finished,
    Reasoning,
    ReasoningDone,
    Replaced,
    TokenLogprob,
    TokenLogprobs,
    ToolCallDelta,
    Usage,
)
from services.api.safety.case import Case
from services.api.safety.gate import SentenceGate
from services.api.safety.policy import Policy
from services.api.safety.verdicts import Hit, Judgement, Part, Verdict, judge

DONE = Finished("stop", Usage(3, 5))
FALLBACK, URGENT = "FALLBACK", "URGENT"


@dataclass
class Scripted:
    """Blocks a sentence that holds 坏, asks for the urgent sentence unless 急诊 was said; remembers what it was shown."""

    emergency: bool = False
    slow_s: float = 0.0
    seen: list[str] = field(default_factory=list)
    label: str = "scripted"

    def sentence(self, case: Case, part: Part, original: str, start: int) -> list[Hit]:
        self.seen.append(original)
        time.sleep(self.slow_s)
        if part == "answer" and "急诊" in original:
            case.facts.add("urgent")
        found = [Hit("dosage", Verdict.BLOCK, "bad", part, start, start + 1)] if "坏" in original else []
        case.hits.extend(found)
        return found

    def end(self, case: Case) -> Judgement:
        if self.emergency and "urgent" not in case.facts:
            case.hits.append(Hit("missing_emergency_advice", Verdict.AMEND, "flag", "input", 0, 1))
        return judge(case.hits)

    def fallback(self, case: Case) -> str:
        return FALLBACK

    def additions(self, case: Case, judgement: Judgement) -> Sequence[str]:
        return [URGENT]

    def early_additions(self, case: Case) -> Sequence[str]:
        return [URGENT] if self.emergency and "urgent" not in case.facts else []


def run(judging: Scripted, events: Sequence[Event], streaming: bool = True, **options: bool | float) -> list[Event]:
    gate = SentenceGate(judging, Case(cast(Policy, None), [], "zh"), streaming=streaming, **options)  # type: ignore[arg-type]
    out: list[Event] = []
    for event in events:
        out += gate.take(event)
        if gate.is_blocked:
            break
    return out if out and isinstance(out[-1], Finished) else [*out, *gate.take(DONE)]


def content(events: Sequence[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, Answer | Replaced))


def thought(events: Sequence[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, Reasoning))


def end(events: Sequence[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    assert sum(isinstance(e, Finished) for e in events) == 1
    return events[-1]


def chunked(part: type[Reasoning] | type[Answer], text: str, size: int) -> list[Event]:
    return [part(text[n : n + size]) for n in range(0, len(text), size)]


@given(
    st.text(st.sampled_from("好急诊坏。！，\n a.1"), max_size=60),
    st.text(st.sampled_from("想坏。，"), max_size=20),
    st.integers(1, 60),
    st.booleans(),
)
def test_every_chunking_and_both_modes_agree(answer: str, reasoning: str, size: int, emergency: bool) -> None:
    ends = []
    for streaming in (True, False):
        for n in (1, size, 1000):
            events = [*chunked(Reasoning, reasoning, n), ReasoningDone(), *chunked(Answer, answer, n), DONE]
            out = run(Scripted(emergency), events, streaming)
            ends.append((end(out).safety, end(out).reason))
            if end(out).safety.verdict == "block":
                assert content(out).endswith(FALLBACK)
                assert end(out).reason == "content_filter"
                assert "坏" not in content(out) + thought(out)
            else:
                assert thought(out) == reasoning
                assert answer in content(out)
    assert len(set(map(str, ends))) == 1


def test_not_one_character_of_a_withheld_sentence_leaves() -> None:
    out = run(Scripted(), [*chunked(Answer, "先休息。然后吃这种坏药，每天三次。再见", 1)])
    assert content(out) == "先休息。\n\nFALLBACK"
    replaced = [e for e in out if isinstance(e, Replaced)]
    assert [e.text for e in replaced] == [FALLBACK]
    assert replaced[0].safety.verdict == "block"


def test_a_blocked_whole_reply_is_the_fallback_alone() -> None:
    out = run(Scripted(), [Reasoning("想想。"), ReasoningDone(), Answer("先休息。坏药。")], streaming=False)
    assert [type(e) for e in out] == [Replaced, Finished]
    assert content(out) == FALLBACK


def test_a_block_in_the_thought_stops_everything() -> None:
    out = run(Scripted(), [Reasoning("好。坏。好。"), ReasoningDone(), Answer("答。")])
    assert thought(out) == "好。"
    assert content(out) == FALLBACK


def test_hidden_reasoning_is_not_judged() -> None:
    out = run(Scripted(), [Reasoning("坏。"), ReasoningDone(), Answer("答。")], shows_reasoning=False)
    assert end(out).safety.verdict == "pass"


def test_the_urgent_sentence_goes_first_when_the_user_said_it() -> None:
    out = run(Scripted(emergency=True), [Answer("多喝水。"), Answer("好好休息。")])
    assert content(out) == "URGENT\n\n多喝水。好好休息。"
    assert end(out).safety.verdict == "amend"


def test_an_early_sentence_that_was_not_needed_does_not_change_the_verdict() -> None:
    out = run(Scripted(emergency=True), [Answer("多喝水。"), Answer("快去急诊。")])
    assert content(out).startswith(URGENT)
    assert end(out).safety.verdict == "pass"


def test_a_reply_that_sends_to_care_at_once_is_left_alone() -> None:
    out = run(Scripted(emergency=True), [Answer("快去急诊。多喝水。")])
    assert content(out) == "快去急诊。多喝水。"


def test_json_is_not_broken_by_a_sentence_of_ours() -> None:
    for streaming in (True, False):
        out = run(Scripted(emergency=True), [Answer('{"a": 1}')], streaming, amends_text=False)
        assert content(out) == '{"a": 1}'
        assert end(out).safety.verdict == "amend"


def test_tool_calls_are_judged_by_what_people_read_in_them() -> None:
    bad = ToolCallDelta(0, "call_1", "note", '{"text": "\\u574f"}')
    for streaming in (True, False):
        out = run(Scripted(), [bad], streaming)
        assert not any(isinstance(e, ToolCallDelta) for e in out)
        assert end(out).reason == "content_filter"
    good = [ToolCallDelta(0, "call_1", "note", '{"te'), ToolCallDelta(0, arguments='xt": "x"}')]
    assert [e for e in run(Scripted(emergency=True), good) if isinstance(e, ToolCallDelta)] == good
    assert content(run(Scripted(emergency=True), good)) == ""  # it is no reply yet


def test_a_slow_check_blocks() -> None:
    out = run(Scripted(slow_s=0.02), [Answer("好。好。")], check_limit_s=0.001)
    assert end(out).safety.rules == ("check_failed",)
    assert content(out) == FALLBACK


def test_logprobs_leave_with_their_sentence() -> None:
    def token(text: str) -> TokenLogprobs:
        return TokenLogprobs(TokenLogprob(1, -0.1, text, text.encode()), ())

    out = run(Scripted(), [Answer(c, (token(c),)) for c in "好。行。坏。"])
    told = [t.sampled.text for e in out if isinstance(e, Answer) for t in e.logprobs]
    assert told == ["好", "。", "行", "。"]


def test_the_model_may_pause_or_ramble_and_the_gate_stays_shut() -> None:
    judging = Scripted()
    gate = SentenceGate(judging, Case(cast(Policy, None), [], "zh"), streaming=True)
    assert list(gate.take(Answer("这种药" * 20))) == []
    assert judging.seen == []
    released = [e for n in range(50) for e in gate.take(Answer("又好"))]
    assert content(released) == "".join(judging.seen)
