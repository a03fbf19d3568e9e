"""All rules over one case: the conversation first, then each sentence before it leaves, then the whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from services.api.safety.case import Case, Rule, open_case, read_sentence
from services.api.safety.opening import Opening
from services.api.safety.policy import Policy
from services.api.safety.sentences import SentenceCutter
from services.api.safety.verdicts import CHECK_FAILED, SECOND_OPINION, Hit, Judgement, Part, Verdict, judge

log = logging.getLogger(__name__)


class Judge:
    """A policy's rules, in the order in which their hits are recorded. One per policy, shared by all requests."""

    def __init__(self, policy: Policy, rules: Sequence[Rule]) -> None:
        self.policy = policy
        self._rules = rules

    @property
    def label(self) -> str:
        return self.policy.label

    def fallback(self, case: Case) -> str:
        """What a blocked reply's reader gets."""
        return self.policy.fallback.of(case.language)

    def additions(self, case: Case, judgement: Judgement) -> list[str]:
        """What an amended reply gets, by the rules that ask for it."""
        amending = {hit.rule for hit in judgement.hits if hit.verdict is Verdict.AMEND}
        wanted = []
        if amending & {"missing_emergency_advice", SECOND_OPINION}:
            wanted.append(self.policy.urgent.of(case.language))
        if "self_harm" in amending:
            wanted.append(self.policy.crisis.of(case.language))
        return wanted

    def early_additions(self, case: Case) -> list[str]:
        """What the user's own words call for and the reply has not brought with its first sentence."""
        facts, language = case.facts, case.language
        wanted = []
        if "red_flag_input" in facts and "urgent_advice" not in facts:
            wanted.append(self.policy.urgent.of(language))
        if "self_harm_risk" in facts and "crisis_help" not in facts:
            wanted.append(self.policy.crisis.of(language))
        return wanted

    def open(self, messages: Sequence[tuple[str, str]], system_prompt: str | None = None) -> Case:
        """Assesses a conversation of (role, text), oldest first."""
        case = open_case(self.policy, messages, system_prompt)

        def check() -> Iterable[Hit]:
            for rule in self._rules:
                rule.assess(case)
            return ()

        self._closed(case, check, Hit(CHECK_FAILED, Verdict.BLOCK, CHECK_FAILED, "input", 0, 0))
        return case

    def sentence(self, case: Case, part: Part, original: str, start: int) -> list[Hit]:
        """Judges one more sentence and remembers it. A check that fails blocks: nobody has looked at the sentence."""

        def check() -> Iterable[Hit]:
            sentence = read_sentence(case, part, original, start)
            found = [hit for rule in self._rules for hit in rule.judge(sentence, case)]
            case.reply.append(sentence)
            return found

        return self._closed(case, check, Hit(CHECK_FAILED, Verdict.BLOCK, CHECK_FAILED, part, start, start))

    def end(self, case: Case) -> Judgement:
        """The verdict of the whole reply."""

        def check() -> Iterable[Hit]:
            return [hit for rule in self._rules for hit in rule.end(case)]

        self._closed(case, check, Hit(CHECK_FAILED, Verdict.BLOCK, CHECK_FAILED, "answer", 0, 0))
        return judge(case.hits)

    def _closed(self, case: Case, check: Callable[[], Iterable[Hit]], failure: Hit) -> list[Hit]:
        try:
            found = list(check())
        except Exception as error:  # noqa: BLE001 - fail closed: whatever broke, nobody may read what was not checked
            log.error("safety check failed: %s", type(error).__name__)  # a message might quote the reply
            found = [failure]
        case.hits.extend(found)
        return found


def judge_reply(
    judging: Opening,
    messages: Sequence[tuple[str, str]],
    reply: str,
    reasoning: str = "",
    system_prompt: str | None = None,
) -> Judgement:
    """A whole reply at once: the same cuts, the same checks and the same verdict as in a stream."""
    case = judging.open(messages, system_prompt)
    parts: tuple[tuple[Part, str], ...] = (("reasoning", reasoning), ("answer", reply))
    for part, text in parts:
        cutter, start = SentenceCutter(), 0
        for sentence in [*cutter.add(text), *cutter.end()]:
            hits = judging.sentence(case, part, sentence, start)
            if any(hit.verdict is Verdict.BLOCK for hit in hits):
                return judge(case.hits)
            start += len(sentence)
    return judging.end(case)
