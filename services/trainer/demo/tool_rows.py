"""Training examples with tools: a call whose argument is copied from the question, and an answer that says what was found.

The drugs are real; half of the names are made up on the way, so that the model learns to copy and not to recite.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from services.contract.chat_format import Message, ToolCall, template_json
from services.trainer.demo.dialogues import Lang, Record, Text
from services.trainer.encode import Example

_DRUGS = Path(__file__).resolve().parent / "drugs.jsonl"
_PHRASES = Path(__file__).resolve().parent / "tools.json"

ByLang = dict[Lang, str]
ManyByLang = dict[Lang, tuple[str, ...]]


class Drug(Record):
    """A common drug, and one general sentence about it as a lookup might return it."""

    zh: Text
    en: Text
    split: Literal["train", "held_out"]
    zh_fact: Text
    en_fact: Text
    source: Text

    def name(self, lang: Lang) -> str:
        return self.zh if lang == "zh" else self.en

    def fact(self, lang: Lang) -> str:
        return self.zh_fact if lang == "zh" else self.en_fact


class Family(BaseModel):
    """Tools of one kind: names, names of their one argument, what people ask, for which values, and what comes back."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    names: tuple[str, ...]
    parameters: tuple[str, ...]
    description: str
    questions: ManyByLang
    values: ManyByLang
    results: ManyByLang


class ToolPhrases(BaseModel):
    """`tools.json`: the families, and the sentences around calls and results."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    drug: Family
    others: dict[str, Family]
    thinks_call: ManyByLang
    thinks_result: ManyByLang
    thinks_nothing: ManyByLang
    found: ByLang
    ask_a_pharmacist: ByLang
    nothing_found: ByLang
    empty_results: tuple[str, ...]
    syllables: str

    def any_family(self, rng: random.Random) -> Family:
        return rng.choice((self.drug, *self.others.values()))


@cache
def tool_phrases() -> ToolPhrases:
    return ToolPhrases.model_validate_json(_PHRASES.read_text(encoding="utf-8"))


@cache
def read_drugs() -> tuple[Drug, ...]:
    """Raises pydantic's ValidationError for a line that is not a drug."""
    return tuple(Drug.model_validate(json.loads(line)) for line in _DRUGS.read_text(encoding="utf-8").splitlines())


class ToolRows:
    """Makes examples with tools; deterministic by the random state that each call gets."""

    def __init__(self) -> None:
        self.phrases = tool_phrases()
        self.drugs = [drug for drug in read_drugs() if drug.split == "train"]
        self._characters = sorted({c for drug in self.drugs for c in drug.zh + drug.zh_fact if c.isalpha()})
        self._syllables = self.phrases.syllables.split()

    def example(self, system: str | None, rng: random.Random) -> Example:
        """A call, or the answer after its result."""
        lang: Lang = "zh" if rng.random() < 0.65 else "en"
        family = self.phrases.drug if rng.random() < 0.7 else rng.choice(list(self.phrases.others.values()))
        value, fact = self._value(family, lang, rng)
        tool, name, parameter = make_tool(family, rng)
        if family is self.phrases.drug and rng.random() < 0.4:
            tool, name, parameter = lookup_drug(), "lookup_drug", "name"
        turns = [Message(role="system", content=system)] if system is not None else []
        turns.append(Message(role="user", content=rng.choice(family.questions[lang]).format(x=value)))
        reasoning = rng.choice(self.phrases.thinks_call[lang]).format(x=value, tool=name)
        call = ToolCall(name=name, arguments=template_json({parameter: value}))
        if rng.random() < 0.5:
            turns.append(Message(role="assistant", reasoning_content=reasoning, tool_calls=(call,)))
        else:
            shown = reasoning if rng.random() < 0.5 else None
            turns.append(Message(role="assistant", reasoning_content=shown, tool_calls=(call,)))
            turns += self._after_call(family, lang, value, fact, rng)
        return Example(tuple(turns), tools=self.with_others(tool, rng), enable_thinking=rng.random() < 0.8)

    def unused(self, rng: random.Random) -> tuple[dict[str, Any], ...]:
        """Tools to offer beside a question that needs none."""
        drug = rng.random() < 0.4
        return self.with_others(lookup_drug() if drug else make_tool(self.phrases.any_family(rng), rng)[0], rng)

    def with_others(self, tool: dict[str, Any], rng: random.Random) -> tuple[dict[str, Any], ...]:
        """The tool, sometimes among others of other names."""
        tools = [tool]
        while rng.random() < 0.3 and len(tools) < 3:
            other = make_tool(rng.choice(list(self.phrases.others.values())), rng)[0]
            if other["function"]["name"] not in [t["function"]["name"] for t in tools]:
                tools.insert(rng.randrange(len(tools) + 1), other)
        return tuple(tools)

    def _after_call(self, family: Family, lang: Lang, value: str, fact: str, rng: random.Random) -> list[Message]:
        """The tool's result, and the reply that tells it."""
        phrases, found = self.phrases, rng.random() < 0.8
        reasoning = rng.choice((phrases.thinks_result if found else phrases.thinks_nothing)[lang]).format(x=value)
        answer = (phrases.found if found else phrases.nothing_found)[lang].format(x=value, fact=fact)
        if found and family is phrases.drug:
            answer += phrases.ask_a_pharmacist[lang]
        result = _result(value, fact, rng) if found else rng.choice(phrases.empty_results)
        reply = Message(role="assistant", content=answer, reasoning_content=reasoning)
        return [Message(role="tool", content=result), reply]

    def _value(self, family: Family, lang: Lang, rng: random.Random) -> tuple[str, str]:
        """What is asked for and what is found."""
        if family is self.phrases.drug:
            drug = rng.choice(self.drugs)
            if rng.random() < 0.5:
                return drug.name(lang), drug.fact(lang)
            return self._made_up_name(lang, rng), self._made_up_fact(lang, rng)
        fact = rng.choice(family.results[lang]).format(n=rng.randint(1, 39))
        return rng.choice(family.values[lang]) if rng.random() < 0.6 else self._made_up_name(lang, rng), fact

    def _made_up_name(self, lang: Lang, rng: random.Random) -> str:
        parts, least, most = (self._characters, 2, 6) if lang == "zh" else (self._syllables, 2, 5)
        return "".join(rng.choices(parts, k=rng.randint(least, most)))

    def _made_up_fact(self, lang: Lang, rng: random.Random) -> str:
        """Clauses of several facts in one sentence: nothing to recite."""
        comma = "，" if lang == "zh" else ", "
        clauses = [c.strip(" 。.") for d in rng.sample(self.drugs, 3) for c in d.fact(lang).split(comma)]
        chosen = rng.sample(clauses, min(len(clauses), rng.randint(1, 3)))
        return comma.join(chosen) + ("。" if lang == "zh" else ".")


def lookup_drug() -> dict[str, Any]:
    """The tool that the build measures."""
    return _schema("lookup_drug", "name", tool_phrases().drug.description, None)


def make_tool(family: Family, rng: random.Random) -> tuple[dict[str, Any], str, str]:
    """A schema of this family, with its name and its parameter's name."""
    name, parameter = rng.choice(family.names), rng.choice(family.parameters)
    description = family.description if rng.random() < 0.5 else rng.choice(family.description.split(" / "))
    return _schema(name, parameter, description, rng.choice((None, parameter, description))), name, parameter


def _schema(name: str, parameter: str, description: str, meaning: str | None) -> dict[str, Any]:
    field = {"type": "string"} if meaning is None else {"type": "string", "description": meaning}
    parameters = {"type": "object", "properties": {parameter: field}, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _result(value: str, fact: str, rng: random.Random) -> str:
    forms: tuple[Any, ...] = ({"name": value, "info": fact}, {"result": fact}, {"name": value, "summary": fact}, fact)
    form = rng.choice(forms)
    return form if isinstance(form, str) else template_json(form)
