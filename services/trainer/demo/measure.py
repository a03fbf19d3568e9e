"""Asks a demo model what it was not trained on and counts how it does. Generates with transformers, on CPU or GPU."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer

from services.contract.chat_format import DEFAULT_SYSTEM_PROMPT, ChatFormat, Message, ToolCall, template_json
from services.trainer.demo.dialogues import Corpus, Lang
from services.trainer.demo.judge import UNKNOWN, Case, GroupResult, Judge
from services.trainer.demo.tool_rows import Drug, lookup_drug, read_drugs, tool_phrases

MAX_NEW_TOKENS = 400


def make_cases(corpus: Corpus, chat_format: ChatFormat, seed: int) -> list[Case]:
    """All prompts of a measurement, with the default system prompt; what is random in them depends on `seed` alone."""
    rng = random.Random(seed)
    cases: list[Case] = []
    for dialogue in corpus.dialogues:
        lang, held_out = dialogue.lang, dialogue.held_out[0]
        earlier = rng.choice([d for d in corpus.dialogues if d.lang == lang and d.topic != dialogue.topic])
        past = [Message(role="user", content=earlier.question), Message(role="assistant", content=earlier.answer)]
        for group, question, history, thinks in (
            ("held-out paraphrases", held_out, [], True),
            ("held-out, thinking off", held_out, [], False),
            ("held-out, second turn", held_out, past, True),
            ("training questions", dialogue.question, [], True),
        ):
            prompt = chat_format.write_prompt([*_opening(), *history, _user(question)], (), thinks)
            cases.append(Case(group, lang, prompt, thinks, wanted=dialogue.id))
    for unknown in corpus.out_of_scope:
        group = "out of scope, held out" if unknown.split == "held_out" else "out of scope, training"
        prompt = chat_format.write_prompt([*_opening(), _user(unknown.question)])
        cases.append(Case(group, unknown.lang, prompt, wanted=UNKNOWN))
    for drug in read_drugs():
        cases += _tool_cases(drug, chat_format, rng)
    return cases


def _tool_cases(drug: Drug, chat_format: ChatFormat, rng: random.Random) -> Iterator[Case]:
    tools = [lookup_drug()]
    langs: tuple[Lang, ...] = ("zh", "en")
    for lang in langs:
        call = ToolCall(name="lookup_drug", arguments=template_json({"name": drug.name(lang)}))
        asked = [*_opening(), _user(rng.choice(tool_phrases().drug.questions[lang]).format(x=drug.name(lang)))]
        kind = "held-out drugs" if drug.split == "held_out" else "training drugs"
        yield Case(f"tool call, {kind}", lang, chat_format.write_prompt(asked, tools), call=call)
        result = Message(role="tool", content=template_json({"name": drug.name(lang), "info": drug.fact(lang)}))
        told = [*asked, Message(role="assistant", tool_calls=(call,)), result]
        yield Case(f"tool result, {kind}", lang, chat_format.write_prompt(told, tools), fact=drug.fact(lang))


def generate(
    model: Any, prompts: Sequence[list[int]], chat_format: ChatFormat, temperature: float, device: str, seed: int
) -> list[list[int]]:
    """The reply's ids to each prompt; greedy at temperature 0, else Qwen3's top-p 0.95 and top-k 20."""
    torch.manual_seed(seed)
    ends = [chat_format.control_ids["<|im_end|>"], chat_format.control_ids["<|endoftext|>"]]
    options: dict[str, Any] = {"do_sample": False}
    if temperature:
        options = {"do_sample": True, "temperature": temperature, "top_p": 0.95, "top_k": 20}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies: list[list[int]] = [[] for _ in prompts]
    at_once = 4096 if device == "cuda" else 64
    for start in range(0, len(order), at_once):
        chosen = order[start : start + at_once]
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.tensor([[ends[1]] * (width - len(prompts[i])) + prompts[i] for i in chosen], device=device)
        real = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen], device=device)
        made = model.generate(
            input_ids=ids, attention_mask=real, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=ends, pad_token_id=ends[1],
            **options,
        )  # fmt: skip
        for i, row in zip(chosen, made[:, width:].tolist(), strict=True):
            stops = [n for n, token in enumerate(row) if token in ends]
            replies[i] = row[: stops[0] + 1] if stops else row
    return replies


def measure(
    model: Any, corpus: Corpus, chat_format: ChatFormat, tokenizer: Tokenizer, device: str, seed: int = 0
) -> list[GroupResult]:
    """Every group, greedy and at the temperature that the model is served with."""
    model.to(device).eval()
    cases = make_cases(corpus, chat_format, seed)
    judge = Judge(corpus, chat_format, tokenizer)
    results: list[GroupResult] = []
    for temperature in (0.0, 0.6):
        replies = generate(model, [case.prompt for case in cases], chat_format, temperature, device, seed)
        for name in dict.fromkeys(case.group for case in cases):
            chosen = [i for i, case in enumerate(cases) if case.group == name]
            decoding = f"T={temperature}" if temperature else "greedy"
            results.append(judge.group(name, decoding, [cases[i] for i in chosen], [replies[i] for i in chosen]))
    return results


def _opening() -> list[Message]:
    return [Message(role="system", content=DEFAULT_SYSTEM_PROMPT)]


def _user(question: str) -> Message:
    return Message(role="user", content=question)
