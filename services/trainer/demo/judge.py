"""What a reply of the demo model is worth: its form, which dialogue it repeats, and whether it admits not to know."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import BaseModel
from tokenizers import Tokenizer

from services.contract.chat_format import ChatFormat, ChatFormatError, Message, ToolCall
from services.trainer.demo.dialogues import Corpus, Lang

UNKNOWN_BEGINNINGS = ("我不知道", "I do not know")
UNKNOWN = "unknown"  # stands for a dialogue's id where the right answer is that the model does not know
_REPLY = re.compile(r"<think>\n(?P<reasoning>.*\S.*)\n</think>\n\n(?P<answer>.*\S.*)<\|im_end\|>", re.DOTALL)
_ANSWER_ALONE = re.compile(r"(?P<answer>.*\S.*)<\|im_end\|>", re.DOTALL)
_CONTROL = re.compile(r"<\|[a-z_]+\|>|</?(?:think|tool_call|tool_response)>")


@dataclass(frozen=True)
class Case:
    """One prompt and what a right reply to it is: a dialogue's answer, a tool call, or a text that tells `fact`."""

    group: str
    lang: Lang
    prompt: list[int]
    thinks: bool = True
    wanted: str | None = None
    call: ToolCall | None = None
    fact: str | None = None


class GroupResult(BaseModel):
    """Shares from 0 to 1; `None` where a group has no such thing."""

    group: str
    decoding: str
    cases: int
    exact_format: float
    answer_overlap: float | None = None
    right_dialogue: float | None = None
    says_unknown: float | None = None
    right_tool_call: float | None = None
    tells_result: float | None = None


def overlap(answer: str, reference: str, lang: Lang) -> float:
    """F1 of two bags, 2 * common / (in `answer` + in `reference`): bigrams of characters in Chinese, words in English.

    Case, spaces and punctuation do not count. 1 for equal texts, 0 when one of the two is empty.
    """
    return _bag_f1(_bag(answer, lang), _bag(reference, lang))


class Judge:
    """Compares replies with the dialogues they should be."""

    def __init__(self, corpus: Corpus, chat_format: ChatFormat, tokenizer: Tokenizer) -> None:
        self.chat_format = chat_format
        self.tokenizer = tokenizer
        self._bags: dict[Lang, list[tuple[str, Counter[str]]]] = {"zh": [], "en": []}
        self._names: dict[str, str] = {}  # of answers, most of which the model repeats to the letter
        for dialogue in corpus.dialogues:
            self._add(dialogue.id, dialogue.answer, dialogue.lang)
        for lang in self._bags:
            for unknown in corpus.unknown.of(lang):
                self._add(UNKNOWN, unknown.answer, lang)

    def _add(self, name: str, answer: str, lang: Lang) -> None:
        self._bags[lang].append((name, _bag(answer, lang)))
        self._names[answer] = name

    def group(self, name: str, decoding: str, cases: Sequence[Case], replies: Sequence[list[int]]) -> GroupResult:
        """The result of one group of cases, all of one kind."""
        pairs = list(zip(cases, replies, strict=True))
        result = GroupResult(
            group=name, decoding=decoding, cases=len(pairs), exact_format=_mean([self.is_exact(c, r) for c, r in pairs])
        )
        read = [self._read(reply) for reply in replies]
        answers = [(case, message.content) for case, message in zip(cases, read, strict=True)]
        if cases[0].call is not None:
            result.right_tool_call = _mean([m.tool_calls == (c.call,) for c, m in zip(cases, read, strict=True)])
        elif cases[0].fact is not None:
            result.tells_result = _mean([(case.fact or "") in answer for case, answer in answers])
        else:
            found = [self.nearest(answer, case) for case, answer in answers]
            result.answer_overlap = _mean([score for _, score in found])
            result.right_dialogue = _mean([name == case.wanted for case, (name, _) in zip(cases, found, strict=True)])
            result.says_unknown = _mean([answer.startswith(UNKNOWN_BEGINNINGS) for _, answer in answers])
        return result

    def is_exact(self, case: Case, reply: list[int]) -> bool:
        """Whether the reply is one thought and one answer, framed as the chat format writes them, and closed."""
        text = self.tokenizer.decode(reply, skip_special_tokens=False)
        match = (_REPLY if case.thinks else _ANSWER_ALONE).fullmatch(text)
        if match is None:
            return False
        inside = "".join(part for part in match.groups())
        if case.call is not None:
            inside = inside.replace("<tool_call>", "", 1).replace("</tool_call>", "", 1)
        return _CONTROL.search(inside) is None

    def _read(self, reply: list[int]) -> Message:
        try:
            return self.chat_format.read_reply(reply)
        except ChatFormatError:  # a tool call that is no JSON
            return Message(role="assistant")

    def nearest(self, answer: str, case: Case) -> tuple[str, float]:
        """The dialogue whose answer overlaps most with `answer`, and the overlap with the answer that was wanted."""
        if answer in self._names and self._names[answer] == case.wanted:
            return self._names[answer], 1.0
        bag = _bag(answer, case.lang)
        scores = [(_bag_f1(bag, known), name) for name, known in self._bags[case.lang]]
        best, name = max(scores)
        wanted = max((score for score, other in scores if other == case.wanted), default=0.0)
        return (name if best > 0 else ""), wanted


def table(results: Sequence[GroupResult]) -> str:
    """The results as a Markdown table; shares in percent, overlap from 0 to 1."""
    columns = ["asked", "decoding", "cases", "exact format %", "answer overlap", "right dialogue %"]
    columns += ["does not know %", "tool %"]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for r in results:
        tool = r.right_tool_call if r.right_tool_call is not None else r.tells_result
        shown = [r.group, r.decoding, str(r.cases), _percent(r.exact_format)]
        shown += ["" if r.answer_overlap is None else f"{r.answer_overlap:.3f}"]
        shown += [_percent(r.right_dialogue), _percent(r.says_unknown), _percent(tool)]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _bag(text: str, lang: Lang) -> Counter[str]:
    if lang == "en":
        return Counter(re.findall(r"[a-z0-9]+", text.lower()))
    characters = [c for c in text.lower() if c.isalnum()]
    return Counter(a + b for a, b in pairwise(characters))


def _bag_f1(first: Counter[str], second: Counter[str]) -> float:
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if first and second else 0.0


def _mean(values: Sequence[float | bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
