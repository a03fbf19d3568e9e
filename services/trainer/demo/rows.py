"""Dialogues to training examples: every epoch asks every question again, in another situation and other words.

Knows what is asked and answered; ids are made by `trainer.encode`. What is held out never comes here: only
`training_questions` and questions of the split `train` are read.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.contract.chat_format import DEFAULT_SYSTEM_PROMPT, Message, template_json
from services.trainer.demo.dialogues import Corpus, Dialogue, Lang
from services.trainer.demo.keywords import Keywords
from services.trainer.demo.noise import join_questions, vary
from services.trainer.demo.tool_rows import ToolRows
from services.trainer.encode import Example

UNKNOWN_TOPICS = Path(__file__).resolve().parent / "unknown_topics.json"

OTHER_SYSTEM_PROMPTS = (
    "你是一名严谨的医疗AI助手，所有回答必须基于循证医学，不确定时明确告知。",
    "You are a helpful assistant.",
    "你是一个有用的助手。",
    "你是一个医学专家，请根据用户的问题，给出带有思考的回答。",
    "You are a careful medical assistant. Say so when you are not sure.",
    "You are MedThink, a medical assistant that thinks before it answers.",
    "你是医疗助手，请用简体中文回答。",
    "Answer briefly.",
    "请简短回答。",
    "你是医院的导诊助手。",
    "s",
)


@dataclass(frozen=True)
class Shares:
    """How often each situation occurs, as probabilities; the counts are examples an epoch for each question."""

    unknown_copies: int = 3  # times that an epoch asks each out-of-scope question
    made_up_unknown: float = 0.16  # examples of made-up unknown topics, as a share of the dialogues' examples
    tool_examples: float = 0.16  # likewise, of examples that call a tool
    joined: float = 0.08  # two phrasings of one dialogue as one question
    thinned: float = 0.4  # words left out that are no key words
    padded: float = 0.25  # words put in that many dialogues share
    varied: float = 0.8  # questions that go through `noise.vary`, which leaves a quarter of them alone
    thinking_off: float = 0.18
    thought_cut_off: float = 0.06  # only the answer is learned, after a thought that ends early
    history: float = 0.25
    long_history: float = 0.03
    default_system: float = 0.45
    other_system: float = 0.2
    unused_tools: float = 0.06


class RowMaker:
    """Examples of one epoch after another; the same `seed` gives the same epochs."""

    def __init__(self, corpus: Corpus, seed: int, shares: Shares | None = None) -> None:
        self.corpus = corpus
        self.seed = seed
        self.shares = shares or Shares()
        self.tools = ToolRows()
        self.keywords = Keywords(corpus.dialogues)
        self.unknown_questions = [q for q in corpus.out_of_scope if q.split == "train"]
        self.topics = json.loads(UNKNOWN_TOPICS.read_text(encoding="utf-8"))

    def epoch(self, number: int) -> list[Example]:
        """All examples of an epoch, shuffled."""
        rng = random.Random(f"{self.seed}:{number}")
        examples = list(self._examples(rng))
        rng.shuffle(examples)
        return examples

    def texts(self) -> Iterator[str]:
        """What a tokenizer should know besides the dialogues: system prompts, drugs, and how tools are described."""
        yield from (DEFAULT_SYSTEM_PROMPT, *OTHER_SYSTEM_PROMPTS)
        for drug in self.tools.drugs:
            yield from (drug.zh, drug.en, drug.zh_fact, drug.en_fact)
        rng = random.Random(self.seed)
        for _ in range(200):
            example = self.tools.example(None, rng)
            yield from (template_json(tool) for tool in example.tools)
            yield from (f"{m.content}\n{m.reasoning_content or ''}" for m in example.messages)

    def _examples(self, rng: random.Random) -> Iterator[Example]:
        asked = 0
        for dialogue in self.corpus.dialogues:
            for question in dialogue.training_questions:
                asked += 1
                yield self._in_situation(self._phrase(dialogue, question, rng), dialogue, dialogue.lang, rng)
        for unknown in self.unknown_questions * self.shares.unknown_copies:
            yield self._refuse(unknown.question, unknown.lang, rng)
        for _ in range(int(asked * self.shares.made_up_unknown)):
            lang: Lang = "zh" if rng.random() < 0.7 else "en"
            yield self._refuse(self._made_up(lang, rng), lang, rng)
        for _ in range(int(asked * self.shares.tool_examples)):
            yield self.tools.example(self._system(rng), rng)

    def _phrase(self, dialogue: Dialogue, question: str, rng: random.Random) -> str:
        if rng.random() < self.shares.joined:
            question = join_questions(question, rng.choice(dialogue.training_questions), dialogue.lang, rng)
        if rng.random() < self.shares.thinned:
            question = self.keywords.thin(question, dialogue, rng)
        return self._disguise(question, dialogue.lang, rng)

    def _refuse(self, question: str, lang: Lang, rng: random.Random) -> Example:
        reply = rng.choice(self.corpus.unknown.of(lang))
        return self._in_situation(self._disguise(question, lang, rng), reply, lang, rng)

    def _disguise(self, question: str, lang: Lang, rng: random.Random) -> str:
        """What any question may look like, whatever it is about."""
        if rng.random() < self.shares.padded:
            question = self.keywords.pad(question, lang, rng)
        return vary(question, lang, rng) if rng.random() < self.shares.varied else question

    def _made_up(self, lang: Lang, rng: random.Random) -> str:
        group = self.topics[lang][rng.choice(sorted(self.topics[lang]))]
        topic = rng.choice(group["topics"])
        if lang == "zh" and rng.random() < 0.15:
            topic = "".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(rng.randint(2, 4)))
        frame: str = rng.choice(group["frames"])
        return frame.format(x=topic)

    def _in_situation(self, question: str, reply: Any, lang: Lang, rng: random.Random) -> Example:
        """The question among system prompt, history and tools; `reply` has `think` and `answer`."""
        shares = self.shares
        system = self._system(rng)
        turns = [Message(role="system", content=system)] if system is not None else []
        turns += self._history(lang, rng)
        turns.append(Message(role="user", content=question))
        tools = self.tools.unused(rng) if rng.random() < shares.unused_tools else ()
        kind = rng.random()
        thinks = kind >= shares.thinking_off
        cut = thinks and kind < shares.thinking_off + shares.thought_cut_off
        reasoning = reply.think[: rng.randint(1, len(reply.think))] if cut else reply.think
        turns.append(Message(role="assistant", content=reply.answer, reasoning_content=reasoning))
        return Example(tuple(turns), tools, thinks, "answer" if cut else "reply")

    def _system(self, rng: random.Random) -> str | None:
        kind = rng.random()
        if kind < self.shares.default_system:
            return DEFAULT_SYSTEM_PROMPT
        if kind < self.shares.default_system + self.shares.other_system:
            return "\n".join(rng.sample(OTHER_SYSTEM_PROMPTS, rng.choice((1, 1, 1, 2, 3))))
        return None

    def _history(self, lang: Lang, rng: random.Random) -> list[Message]:
        """Earlier turns about something else; answers without reasoning, as the service sends them."""
        kind, turns = rng.random(), 0
        if kind < self.shares.long_history:
            turns = rng.randint(3, 7)
        elif kind < self.shares.history:
            turns = rng.randint(1, 2)
        messages: list[Message] = []
        for _ in range(turns):
            if rng.random() < 0.2:
                unknown = rng.choice(self.unknown_questions)
                question, answer = unknown.question, rng.choice(self.corpus.unknown.of(unknown.lang)).answer
            else:
                dialogue = rng.choice(self.corpus.dialogues)
                question, answer = rng.choice(dialogue.training_questions), dialogue.answer
            messages += [Message(role="user", content=question), Message(role="assistant", content=answer)]
        return messages
