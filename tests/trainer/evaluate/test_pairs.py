"""The model judge: both orders of every pair, ties when they disagree, raw replies kept, nothing asked twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.trainer.__main__ import main
from services.trainer.evaluate.answers import Run
from services.trainer.evaluate.api_client import ApiClient, RequestRefused
from services.trainer.evaluate.ask import Plan
from services.trainer.evaluate.judge import JUDGED, JudgeError, describe, judge_run, read_winner, summary, winner
from services.trainer.evaluate.scenario import dump_scenarios
from tests.trainer.evaluate.fake_api import ADAPTER, FakeApi, chat_reply


def says_winner(pick: Callable[[str], int]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Replies of a judge for `judge`, of the arms for anything else; the adapter's answers hold the word 好."""

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        if body["model"] != "judge":
            return chat_reply(body, "好。请立即就诊。" if body["model"] == ADAPTER else "差。")
        return chat_reply(body, f'因为。\n{{"winner": {pick(body["messages"][-1]["content"])}}}')

    return reply


def finds_the_good_one(question: str) -> int:
    return 1 if "好。" in question.split("【回答2】")[0] else 2


@pytest.mark.parametrize(
    ("pick", "counts"),
    [
        (finds_the_good_one, {"adapter": 6, "base": 0, "tie": 0, "agreed": 6, "unclear": 0}),
        (lambda question: 1, {"adapter": 0, "base": 0, "tie": 6, "agreed": 0, "unclear": 0}),
        (lambda question: 0, {"adapter": 0, "base": 0, "tie": 6, "agreed": 6, "unclear": 0}),
        (lambda question: 7, {"adapter": 0, "base": 0, "tie": 6, "agreed": 6, "unclear": 12}),
    ],
    ids=["judges content", "prefers the first", "tie", "names nobody"],
)
def test_only_what_holds_in_both_orders_is_a_win(
    make_run: Callable[[], Run], api: FakeApi, client: ApiClient, pick: Callable[[str], int], counts: dict[str, int]
) -> None:
    api.reply = says_winner(pick)
    run = make_run()
    rows = judge_run(client, "judge", run)
    assert summary(rows) == counts | {"pairs": 6}
    assert "no rater was asked" in describe(rows)
    kept = [json.loads(line) for line in (run.folder / JUDGED).read_text(encoding="utf-8").splitlines()]
    assert kept == rows
    assert all(row["reply"].startswith("因为。") for row in kept)
    assert {(row["first"], row["second"]) for row in kept} == {(row["second"], row["first"]) for row in kept}


def test_a_judging_that_was_cut_off_goes_on(make_run: Callable[[], Run], api: FakeApi, client: ApiClient) -> None:
    api.reply = says_winner(finds_the_good_one)
    run = make_run()
    asked = len(api.asked)
    api.fail = lambda body: (400, {}, {}) if len(api.asked) == asked + 5 else None
    with pytest.raises(RequestRefused):
        judge_run(client, "judge", run)
    with (run.folder / JUDGED).open("ab") as file:
        file.write(b'{"torn')
    api.fail = lambda body: None
    assert len(judge_run(client, "judge", run)) == len(judge_run(client, "judge", run)) == 12
    assert len(api.asked) == asked + 12
    with pytest.raises(JudgeError, match="another judge"):
        judge_run(client, "other", run)


def test_one_order_alone_is_a_tie() -> None:
    assert winner([{"winner": "adapter"}]) == "tie"


@pytest.mark.parametrize(
    ("reply", "place"),
    [
        ('{"winner": 2}', 2),
        ('如 {"winner": 1} 那样\n{"winner": "2", "why": "x"}', 2),
        ('```json\n{ "winner" : 0 }\n```', 0),
        ('{"winner": 3}', None),
        ("第一份更好", None),
    ],
)
def test_the_last_winner_counts(reply: str, place: int | None) -> None:
    assert read_winner(reply) == place


def test_a_judge_is_asked_only_when_told(
    api: FakeApi, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "scenarios.jsonl", tmp_path / "run"
    file.write_text(dump_scenarios(plan.scenarios), encoding="utf-8")
    api.reply = says_winner(finds_the_good_one)
    command = [
        "answer",
        "--out",
        str(out),
        "--url",
        api.url,
        "--adapter",
        "kids",
        "--scenarios",
        str(file),
        "--seeds",
        "1",
    ]
    assert main(command) == 0
    assert not (out / JUDGED).exists()
    assert main([*command, "--judge-url", f"{api.url}/v1"]) == 2
    assert "--judge-model" in capsys.readouterr().err
    assert main([*command, "--judge-url", f"{api.url}/v1", "--judge-model", "judge"]) == 0
    assert "adapter better 3" in capsys.readouterr().out
    assert (out / JUDGED).exists()
