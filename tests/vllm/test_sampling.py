"""Every sampling field reaches the engine and does what it says. Tokens are forced, so that no test depends on taste."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.vllm

Ask = Callable[..., dict[str, Any]]
Stream = Callable[..., list[dict[str, Any]]]
Token = Callable[[str], int]
Fields = dict[str, Any]


@pytest.fixture(scope="module")
def letters(token: Token) -> Fields:
    """Single letters, which a model that was taught sentences has no firm opinion about."""
    allowed = [token(letter) for letter in string.ascii_letters]
    return {"enable_thinking": False, "allowed_token_ids": allowed, "max_tokens": 24}


@pytest.fixture(scope="module")
def wild(letters: Fields) -> Fields:
    return letters | {"temperature": 2.0, "top_p": 1.0, "top_k": 0}


def content(completion: dict[str, Any], choice: int = 0) -> str:
    return str(completion["choices"][choice]["message"]["content"])


def force(token: Token, text: str, bias: float = 100) -> dict[str, Any]:
    return {"enable_thinking": False, "logit_bias": {str(token(text)): bias}}


def test_a_seed_repeats_a_reply_and_another_seed_does_not(ask: Ask, wild: Fields) -> None:
    first, again, other = (content(ask(**wild, seed=seed)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_a_stream_with_the_same_seed_shows_the_same_text(ask: Ask, stream: Stream, wild: Fields) -> None:
    chunks = stream(**wild, seed=7)
    text = "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])
    assert text == content(ask(**wild, seed=7))


def test_three_choices_are_three_replies(ask: Ask, wild: Fields) -> None:
    completion = ask(**wild, seed=7, n=3)
    assert [c["index"] for c in completion["choices"]] == [0, 1, 2]
    assert len({content(completion, i) for i in range(3)}) == 3
    assert completion["usage"]["completion_tokens"] > 24
    assert content(completion, 0) == content(ask(**wild, seed=7)), "the first choice is the seed's own"
    assert completion["usage"]["prompt_tokens"] == ask(**wild)["usage"]["prompt_tokens"]


def test_three_streamed_choices_each_begin_and_end(ask: Ask, stream: Stream, wild: Fields) -> None:
    chunks = stream(**wild, seed=7, n=3)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    whole = ask(**wild, seed=7, n=3)
    for index in range(3):
        mine = [c for c in choices if c["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert [c["finish_reason"] is not None for c in mine] == [False] * (len(mine) - 1) + [True]
        assert "".join(c["delta"].get("content") or "" for c in mine) == content(whole, index)


@pytest.mark.parametrize("thinks", [True, False])
def test_logprobs_belong_to_the_answers_tokens(ask: Ask, thinks: bool) -> None:
    completion = ask(enable_thinking=thinks, logprobs=True, top_logprobs=3)
    tokens = completion["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(t["bytes"]) for t in tokens).decode() == content(completion)
    for token in tokens:
        assert -9999 <= token["logprob"] <= 0
        assert len(token["top_logprobs"]) == 3
        assert token["top_logprobs"][0]["token"] == token["token"], "greedy takes the best"
        best_first = [t["logprob"] for t in token["top_logprobs"]]
        assert best_first == sorted(best_first, reverse=True)


def test_logprobs_without_alternatives_name_the_sampled_token_alone(ask: Ask) -> None:
    tokens = ask(max_tokens=8, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert tokens
    assert all(token["top_logprobs"] == [] for token in tokens)


def test_streamed_logprobs_are_those_of_the_whole_reply(ask: Ask, stream: Stream) -> None:
    fields = {"max_tokens": 24, "logprobs": True, "top_logprobs": 2}
    streamed = [
        t for chunk in stream(**fields) for c in chunk["choices"] for t in (c["logprobs"] or {"content": []})["content"]
    ]
    whole = ask(**fields)["choices"][0]["logprobs"]["content"]
    assert [t["token"] for t in streamed] == [t["token"] for t in whole]
    assert [t["logprob"] for t in streamed] == pytest.approx([t["logprob"] for t in whole], abs=1e-3)


def test_no_logprobs_unless_asked_for(ask: Ask) -> None:
    assert ask(max_tokens=2)["choices"][0]["logprobs"] is None


def test_a_bias_forces_a_token(ask: Ask, token: Token) -> None:
    assert content(ask(**force(token, "Q"), max_tokens=4)) == "QQQQ"


def test_a_bias_forbids_a_token(ask: Ask, token: Token) -> None:
    bias = {str(token("Q")): 100, str(token("Z")): 90}
    fields = {"enable_thinking": False, "max_tokens": 4}
    assert content(ask(**fields, logit_bias=bias)) == "QQQQ"
    assert content(ask(**fields, logit_bias=bias | {str(token("Q")): -100})) == "ZZZZ"


def test_only_allowed_tokens_are_sampled(ask: Ask, token: Token) -> None:
    text = content(ask(enable_thinking=False, allowed_token_ids=[token("Q"), token("Z")], max_tokens=12))
    assert len(text) == 12
    assert set(text) <= {"Q", "Z"}


def test_a_frequency_penalty_ends_a_repetition(ask: Ask, token: Token) -> None:
    fields = force(token, "Q", 40) | {"max_tokens": 60}
    assert set(content(ask(**fields))) == {"Q"}
    assert set(content(ask(**fields, frequency_penalty=2.0))) > {"Q"}


def test_a_presence_penalty_makes_a_reply_more_varied(ask: Ask, letters: Fields) -> None:
    few, many = (
        set(content(ask(**(letters | {"max_tokens": 60}), presence_penalty=penalty))) for penalty in (-2.0, 2.0)
    )
    assert len(many) > len(few)


def test_a_repetition_penalty_changes_what_is_said_again(ask: Ask, token: Token) -> None:
    fields = force(token, "Q", 30) | {"max_tokens": 12}
    assert set(content(ask(**fields))) == {"Q"}
    assert set(content(ask(**fields, repetition_penalty=10.0))) > {"Q"}


def test_without_an_end_token_a_reply_goes_on_to_max_tokens(ask: Ask, token: Token) -> None:
    fields = force(token, "<|im_end|>") | {"max_tokens": 40}
    assert ask(**fields)["usage"]["completion_tokens"] == 1
    completion = ask(**fields, ignore_eos=True)
    assert completion["usage"]["completion_tokens"] == 40
    assert completion["choices"][0]["finish_reason"] == "length"


def test_min_tokens_holds_the_end_back(ask: Ask, token: Token) -> None:
    completion = ask(**force(token, "<|im_end|>"), max_tokens=40, min_tokens=10)
    assert completion["usage"]["completion_tokens"] == 11
    assert completion["choices"][0]["finish_reason"] == "stop"


def test_top_k_one_is_greedy(ask: Ask, wild: Fields, letters: Fields) -> None:
    assert content(ask(**(wild | {"top_k": 1}))) == content(ask(**letters))


def test_a_high_min_p_is_greedy(ask: Ask, wild: Fields, letters: Fields) -> None:
    assert content(ask(**wild, min_p=1.0)) == content(ask(**letters))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [6144]}, "stop_token_ids"),
        ({"allowed_token_ids": [6144]}, "allowed_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_what_cannot_be_sampled_is_refused_and_named(
    post: Callable[..., httpx.Response], fields: dict[str, Any], named: str, streamed: bool
) -> None:
    response = post(**fields, stream=streamed)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == named
