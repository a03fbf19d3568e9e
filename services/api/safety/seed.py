"""The article's safety check, for comparison: three regular expressions, without context.

It blocks 绝对值 and "不能肯定", and knows four emergencies. It is here to be measured against, not to be used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

from services.api.safety.case import Case, Said, Sentence, language_of
from services.api.safety.normalise import Normalised
from services.api.safety.policy import Policy, Sentences
from services.api.safety.verdicts import Hit, Judgement, Part, Verdict, judge

_ABSOLUTE = re.compile(r"(肯定|绝对|100%|必然|永不)")
_UNAPPROVED = re.compile(r"(干细胞治疗|基因编辑|未经批准的临床试验)")
_EMERGENCY = re.compile(r"(胸痛|呼吸困难|意识丧失|剧烈头痛)")
_URGENT = "立即就诊"
_FALLBACK = "根据您的描述,存在需要紧急医学评估的风险,请立即前往医院急诊科就诊。"


class SeedJudge:
    """`safety_check` of the article, sentence by sentence; its emergency rule can only be told at the end."""

    label = "seed"

    def open(self, messages: Sequence[tuple[str, str]], system_prompt: str | None = None) -> Case:
        texts = [text for role, text in messages if role == "user"]
        said = [Said(role, _as_is(text), (), 0) for role, text in messages]
        return Case(cast(Policy, None), said, language_of(texts[-1] if texts else ""), system_prompt)

    def sentence(self, case: Case, part: Part, original: str, start: int) -> list[Hit]:
        case.reply.append(Sentence(part, original, start, _as_is(original), ()))
        found = [
            Hit(rule, Verdict.BLOCK, rule, part, start + match.start(), start + match.end())
            for rule, pattern in (("absolute_claim", _ABSOLUTE), ("unapproved_therapy", _UNAPPROVED))
            if (match := pattern.search(original))
        ]
        case.hits.extend(found)
        return found

    def end(self, case: Case) -> Judgement:
        answer = "".join(sentence.original for sentence in case.answer)
        if _URGENT not in answer and (match := _EMERGENCY.search(answer)):
            rule = "missing_emergency_advice"
            case.hits.append(Hit(rule, Verdict.BLOCK, rule, "answer", match.start(), match.end()))
        return judge(case.hits)

    def fallback(self, case: Case) -> str:
        return Sentences(zh=_FALLBACK, en=_FALLBACK).of(case.language)

    def additions(self, case: Case, judgement: Judgement) -> list[str]:
        return []

    def early_additions(self, case: Case) -> list[str]:
        return []


def _as_is(text: str) -> Normalised:
    return Normalised(text, tuple(range(len(text) + 1)))
