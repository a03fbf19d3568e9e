"""Blocks a reply that declares its rules off, shows them or the system prompt, or issues a prescription."""

from __future__ import annotations

import re
from collections.abc import Iterable

from services.api.safety.case import Case, Sentence
from services.api.safety.normalise import normalise
from services.api.safety.verdicts import Hit, Verdict

FACT = "injection"  # the user tries to get at the rules, or wants a prescription
_CHINESE_RUN = 24  # characters in a row that are the system prompt's own: no answer has them by chance
_LATIN_RUN = 60  # the same for alphabetic text, where 24 letters are four words
_LONGEST_PROMPT = 20_000
_RECENT = 4  # messages back to which a try still counts
_CHINESE = re.compile(r"[\u3400-\u9fff]")
# The lines of a prescription form. One is an ordinary word, three are a form.
_FORM = {
    "head": re.compile(r"^\W*(?:prescription|rx|rp|处方|处方笺|电子处方)\W*(?:$|[:#])"),
    "patient": re.compile(r"^\W*(?:patient|name|姓名|患者)[^:]{0,6}:"),
    "drug": re.compile(
        r"^\W*(?:drug|medication|medicine|rx|rp|药品|药名|药物)[^:]{0,6}:"
        r"|\d ?(?:mg|mcg|克|毫克)\b.{0,12}(?:×|x|#|\d ?(?:片|粒|支|盒|tab|cap))"
    ),
    "directions": re.compile(r"\bsig ?[:.]|^\W*(?:directions|用法|用法用量)[^:]{0,6}:"),
    "amount": re.compile(
        r"\b(?:disp|dispense|qty|quantity|refills?)[^a-z:]?:|^\W*(?:数量|总量|有效期)[^:]{0,4}:|#\d+\b"
    ),
    "signed": re.compile(
        r"\bsigned\b.{0,20}:|\bsignature ?:|(?:医师|医生|开方|电子)[^:]{0,4}(?:签名|签章|盖章)"
        r"|^\W*(?:医师|医生|prescriber|doctor)[^:]{0,4}:"
    ),
}
_FORM_LINES = 3


class PromptInjection:
    """What the user tries is kept as the fact `injection`; a refusal and a normal answer to it pass."""

    name = "prompt_injection"

    def assess(self, case: Case) -> None:
        """A try in one of the last messages counts: it is often made in steps."""
        if any(said.active("injection_attempt") for said in case.users[-_RECENT:]):
            case.facts.add(FACT)

    def judge(self, sentence: Sentence, case: Case) -> Iterable[Hit]:
        found = sentence.active("injection")
        if found:
            return [sentence.hit(self.name, Verdict.BLOCK, find) for find in found]
        if FACT in case.facts and self._copies(sentence, case):
            return [sentence.hit_at(self.name, Verdict.BLOCK, "system-prompt-copied")]
        if self._completes_form(sentence, case):
            return [sentence.hit_at(self.name, Verdict.BLOCK, "prescription-form")]
        return ()

    def end(self, case: Case) -> Iterable[Hit]:
        return ()

    def _copies(self, sentence: Sentence, case: Case) -> bool:
        """Whether the sentence, with the end of what came before, has a run of the system prompt."""
        if not case.system_prompt:
            return False
        runs = case.data.get(self.name)
        if runs is None:
            runs = case.data[self.name] = _own_runs(case)
        text = _dense(sentence.before[-_LATIN_RUN:] + sentence.text)
        return any(text[at : at + _LATIN_RUN] in runs for at in range(len(text) - _LATIN_RUN + 1)) or any(
            text[at : at + _CHINESE_RUN] in runs for at in range(len(text) - _CHINESE_RUN + 1)
        )

    def _completes_form(self, sentence: Sentence, case: Case) -> bool:
        """Lines come as sentences of their own, so they are counted over the part."""
        key = f"{self.name}:{sentence.part}"
        if not (":" in sentence.text or "#" in sentence.text or len(sentence.text) < 24):
            return False
        seen: set[str] = case.data.setdefault(key, set())
        new = {name for name, pattern in _FORM.items() if name not in seen and pattern.search(sentence.text)}
        seen |= new
        return bool(new) and len(seen) >= _FORM_LINES and bool(seen & {"head", "signed", "amount"})


def _own_runs(case: Case) -> frozenset[str]:
    """The runs that only the system prompt has: what the policy itself lets readers see is left out."""
    text = _dense(normalise((case.system_prompt or "")[:_LONGEST_PROMPT]).text)
    policy = case.policy
    shown = (policy.fallback, policy.urgent, policy.crisis) if policy else ()
    public = "|".join(_dense(normalise(sentence).text) for each in shown for sentence in (each.zh, each.en))
    short = {text[at : at + _CHINESE_RUN] for at in range(len(text) - _CHINESE_RUN + 1)}
    long = {text[at : at + _LATIN_RUN] for at in range(len(text) - _LATIN_RUN + 1)}
    chinese = {run for run in short if len(_CHINESE.findall(run)) * 2 >= _CHINESE_RUN}
    return frozenset(run for run in chinese | long if run not in public)


def _dense(text: str) -> str:
    """Letters and digits only: marks and line ends of a copy differ."""
    return "".join(character for character in text if character.isalnum())
