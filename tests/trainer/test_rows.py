"""The examples of an epoch: nothing held out, every situation, the same again for the same seed."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from services.contract.chat_format import ChatFormat
from services.trainer.demo.dialogues import Corpus, Lang, comparable
from services.trainer.demo.noise import join_questions, vary
from services.trainer.demo.rows import DEFAULT_SYSTEM_PROMPT, RowMaker
from services.trainer.demo.tool_rows import ToolRows, lookup_drug, read_drugs
from services.trainer.encode import Example, encode


@pytest.fixture(scope="module")
def examples(maker: RowMaker) -> list[Example]:
    return maker.epoch(0)


def questions(example: Example) -> list[str]:
    return [m.content for m in example.messages if m.role == "user"]


def test_nothing_held_out_is_ever_asked(maker: RowMaker, corpus: Corpus) -> None:
    held_out = {comparable(d.held_out[0]) for d in corpus.dialogues}
    held_out |= {comparable(q.question) for q in corpus.out_of_scope if q.split == "held_out"}
    drugs = [drug.zh for drug in read_drugs() if drug.split == "held_out"]
    for epoch in range(3):
        for example in maker.epoch(epoch):
            for question in questions(example):
                assert comparable(question) not in held_out
                assert not any(f"查{drug}" in question for drug in drugs)


def test_made_up_topics_are_in_no_dialogue_and_no_held_out_question(maker: RowMaker, corpus: Corpus) -> None:
    taken = [q for d in corpus.dialogues for q in (*d.training_questions, *d.held_out)]
    taken += [q.question for q in corpus.out_of_scope if q.split == "held_out"]
    topics = [t for groups in maker.topics.values() for group in groups.values() for t in group["topics"]]
    assert [t for t in topics for q in taken if t.lower() in q.lower()] == []
    assert len(topics) > 200


def test_every_reply_is_one_that_was_written_by_hand_or_tells_a_tools_result(
    examples: list[Example], corpus: Corpus
) -> None:
    known = {d.answer for d in corpus.dialogues}
    known |= {a.answer for a in (*corpus.unknown.zh, *corpus.unknown.en)}
    for example in examples:
        reply = example.messages[-1]
        called = any(m.role == "tool" for m in example.messages) or reply.tool_calls
        assert reply.content in known or called


def test_every_question_is_asked_in_every_epoch(examples: list[Example], corpus: Corpus) -> None:
    answered = Counter(e.messages[-1].content for e in examples)
    for dialogue in corpus.dialogues:
        assert answered[dialogue.answer] >= 7


def test_every_situation_occurs(examples: list[Example]) -> None:
    systems = Counter(e.messages[0].content for e in examples if e.messages[0].role == "system")
    assert systems[DEFAULT_SYSTEM_PROMPT] > 0.3 * len(examples)
    assert any(e.messages[0].role == "user" for e in examples)
    assert sum(not e.enable_thinking for e in examples) > 0.1 * len(examples)
    assert any(e.supervise == "answer" for e in examples)
    assert {min(len(questions(e)), 4) for e in examples} == {1, 2, 3, 4}
    assert any(e.tools and not e.messages[-1].tool_calls for e in examples)
    assert any(e.messages[-1].tool_calls for e in examples)
    assert any(e.messages[-2].role == "tool" for e in examples)


def test_history_has_no_reasoning(examples: list[Example]) -> None:
    for example in examples:
        last_question = max(i for i, m in enumerate(example.messages) if m.role == "user")
        assert all(m.reasoning_content is None for m in example.messages[:last_question])


def test_epochs_are_the_same_for_the_same_seed_and_differ_otherwise(corpus: Corpus, maker: RowMaker) -> None:
    assert RowMaker(corpus, seed=7).epoch(1) == maker.epoch(1)
    assert RowMaker(corpus, seed=8).epoch(1) != maker.epoch(1)
    assert maker.epoch(0) != maker.epoch(1)


def test_every_example_can_be_encoded_and_fits(examples: list[Example], chat_format: ChatFormat) -> None:
    for example in examples[:600]:
        row = encode(example, chat_format)
        assert len(row.ids) < 4096
        assert chat_format.read(row.ids + chat_format.encode_text("\n")).complete


def test_a_call_copies_its_argument_from_the_question() -> None:
    rng = random.Random(1)
    rows = ToolRows()
    for _ in range(200):
        example = rows.example(None, rng)
        (call,) = next(m.tool_calls for m in example.messages if m.tool_calls)
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in example.tools}
        assert len(offered) == len(example.tools)
        (parameter,) = offered[call.name]["required"]
        assert call.arguments.startswith('{"' + parameter + '": "')
        value = call.arguments.split('": "')[1].removesuffix('"}')
        assert value in questions(example)[0]


def test_lookup_drug_is_a_tool_in_openais_form() -> None:
    tool = lookup_drug()
    assert tool["type"] == "function"
    assert tool["function"]["name"] == "lookup_drug"
    assert tool["function"]["parameters"]["required"] == ["name"]


# Noise


def test_a_thinned_question_keeps_its_key_words(corpus: Corpus, maker: RowMaker) -> None:
    rng = random.Random(2)
    dialogue = next(d for d in corpus.dialogues if d.topic == "warfarin-natto" and d.lang == "zh")
    assert {"华法", "纳豆"} <= maker.keywords.of(dialogue)
    for question in dialogue.training_questions:
        thinned = [maker.keywords.thin(question, dialogue, rng) for _ in range(20)]
        assert all("纳豆" in t for t in thinned if "纳豆" in question)
        assert any(len(t) < len(question) for t in thinned)


def test_every_dialogue_has_key_words(corpus: Corpus, maker: RowMaker) -> None:
    assert [d.question for d in corpus.dialogues if not maker.keywords.of(d)] == []


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_fillers_are_nobodys_key_words(lang: Lang, corpus: Corpus, maker: RowMaker) -> None:
    keys = {key for d in corpus.dialogues for key in maker.keywords.of(d)}
    fillers, weights = maker.keywords.fillers[lang]
    assert len(fillers) > 100
    assert len(fillers) == len(weights)
    assert not keys & set(fillers)


@pytest.mark.parametrize(("question", "lang"), [("孩子发烧在家怎么护理？", "zh"), ("How do I stop a nosebleed?", "en")])
def test_variants_are_many_and_never_empty(question: str, lang: Lang) -> None:
    rng = random.Random(3)
    variants = {vary(question, lang, rng) for _ in range(200)}
    assert len(variants) > 60
    assert all(v.strip() for v in variants)
    assert question in variants
    assert {vary(question, lang, random.Random(4)) for _ in range(3)} == {vary(question, lang, random.Random(4))}


def test_two_phrasings_are_joined_whole() -> None:
    assert "一问" in (joined := join_questions("一问？", "二问？", "zh", random.Random(5)))
    assert joined.endswith("二问？")
