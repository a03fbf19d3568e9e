"""`answer`: both arms alike, in turn, patient, nothing twice, and a run that says when it was touched."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.trainer.__main__ import main
from services.trainer.evaluate.answers import (
    ANSWERS,
    RECORD,
    SCENARIOS,
    AnswersDamaged,
    AnswersError,
    AnswersIncomplete,
    AnswersMissing,
    Run,
    content_sha256,
    expected_keys,
    read_run,
)
from services.trainer.evaluate.api_client import ApiClient, RequestRefused, ServerGone
from services.trainer.evaluate.ask import (
    Plan,
    RunBusy,
    RunDiffers,
    WrongModel,
    _only_one,
    ask_all,
    questions,
    resolve_arms,
)
from services.trainer.evaluate.scenario import dump_scenarios
from tests.trainer.evaluate.fake_api import ADAPTER, VERSION, FakeApi, chat_reply


def test_every_question_is_asked_once_with_the_same_settings(
    make_run: Callable[[], Run], api: FakeApi, plan: Plan
) -> None:
    run = make_run()
    assert [answer.key for answer in run.answers] == expected_keys(plan.scenarios, plan.seeds)
    assert Counter((b["messages"][-1]["content"], b["model"], b["seed"]) for b in api.asked) == {
        (s.question, model, seed): 1 for s in plan.scenarios for model in plan.arms.values() for seed in plan.seeds
    }
    for body in api.asked:
        assert body["temperature"] == 0.6
        assert body["messages"][0] == {"role": "system", "content": "严谨"}
    first = run.answer("t01", "adapter", 1)
    assert (first.reasoning, first.answer) == ("首先看症状。其次排除。最后就医。", "请立即就诊。")
    assert (first.safety.verdict, first.safety.policy, first.usage["completion_tokens"]) == ("pass", "p1", 12)
    assert first.id == first.sha256[:16] == content_sha256(first)[:16]
    assert len({answer.id for answer in run.answers}) == len(run.answers)
    assert run.record.server == {"version": "1.2"}


def test_the_arms_alternate_and_neither_is_always_first(plan: Plan) -> None:
    order = questions(plan)
    pairs = list(zip(order[::2], order[1::2], strict=True))
    assert all((a.scenario, a.seed) == (b.scenario, b.seed) and a.arm != b.arm for a, b in pairs)
    assert Counter(a.arm for a, _ in pairs) == {"base": 3, "adapter": 3}


def test_a_second_call_asks_only_what_is_missing(client: ApiClient, api: FakeApi, plan: Plan, tmp_path: Path) -> None:
    api.fail = lambda body: (400, {}, {"error": {"message": "no"}}) if len(api.asked) == 5 else None
    with pytest.raises(RequestRefused, match="400: no"):
        ask_all(client, plan, tmp_path, concurrency=1)
    with pytest.raises(AnswersIncomplete, match="the same command again"):
        read_run(tmp_path)
    with (tmp_path / ANSWERS).open("ab") as file:
        file.write(b'{"id": "torn')
    api.fail = lambda body: None
    shown: list[tuple[int, int]] = []
    run = ask_all(client, plan, tmp_path, on_answer=lambda done, total, answer: shown.append((done, total)))
    assert len(api.asked) == len(run.answers) == 12
    assert shown == [(n, 12) for n in range(5, 13)]
    before = (tmp_path / ANSWERS).read_bytes()
    assert ask_all(client, plan, tmp_path) == run
    assert (len(api.asked), (tmp_path / ANSWERS).read_bytes()) == (12, before)


def test_answers_on_their_way_are_kept_when_one_fails(
    client: ApiClient, api: FakeApi, plan: Plan, tmp_path: Path
) -> None:
    api.fail = lambda body: (400, {}, {}) if body["model"] == ADAPTER else None
    with pytest.raises(RequestRefused):
        ask_all(client, plan, tmp_path, concurrency=4)
    kept = (tmp_path / ANSWERS).read_bytes().splitlines()
    assert len(kept) == len(api.asked) > 0


def test_a_busy_server_is_waited_for_as_long_as_it_says(
    client: ApiClient, api: FakeApi, plan: Plan, tmp_path: Path
) -> None:
    refused: list[str] = []

    def busy_once(body: dict[str, Any]) -> tuple[int, dict[str, str], Any] | None:
        key = f"{body['model']} {body['seed']} {body['messages'][-1]}"
        if key in refused:
            return None
        refused.append(key)
        return 503, {"Retry-After": "0"}, {"error": {"message": "the queue is full"}}

    api.fail, waits = busy_once, []
    run = ask_all(replace(client, on_wait=waits.append), plan, tmp_path)
    assert len(run.answers) == len(refused) == len(waits) == 12
    assert all("the queue is full; asking again in 0 s" in wait for wait in waits)


def test_a_server_that_stays_busy_or_is_gone_is_named(
    client: ApiClient, api: FakeApi, plan: Plan, tmp_path: Path
) -> None:
    api.fail = lambda body: (429, {"Retry-After": "0"}, {"error": {"message": "slow down"}})
    with pytest.raises(ServerGone, match="slow down"):
        ask_all(client, plan, tmp_path / "busy", concurrency=1)
    with pytest.raises(ServerGone, match="does not answer"):
        ApiClient("http://127.0.0.1:9", attempts=2, first_wait_s=0).get("/v1/models")


def test_no_more_requests_than_allowed_are_open(client: ApiClient, api: FakeApi, plan: Plan, tmp_path: Path) -> None:
    ask_all(client, plan, tmp_path, concurrency=2)
    assert 1 <= api.busiest <= 2


def test_the_adapters_version_is_pinned(client: ApiClient) -> None:
    assert resolve_arms(client, "Qwen3-1.7B", "kids") == {"base": "Qwen3-1.7B", "adapter": ADAPTER}
    assert resolve_arms(client, "Qwen3-1.7B", ADAPTER)["adapter"] == ADAPTER
    for base, adapter, told in (
        ("Qwen9", "kids", "no model 'Qwen9'"),
        ("Qwen3-1.7B", "cats", "no adapter 'cats'"),
        ("Qwen3-1.7B", "kids@" + "0" * 16, f"in the versions {VERSION}"),
        ("Qwen3-1.7B", "kids@" + "f" * 16, "rank 64"),
    ):
        with pytest.raises(WrongModel, match=told):
            resolve_arms(client, base, adapter)


def test_an_answer_of_another_model_ends_the_run(client: ApiClient, api: FakeApi, plan: Plan, tmp_path: Path) -> None:
    api.reply = lambda body: chat_reply(body) | {"adapter": None}
    with pytest.raises(WrongModel, match="the base model answered"):
        ask_all(client, plan, tmp_path)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"settings": {"temperature": 0.1}}, "settings"),
        ({"system": "别的"}, "settings"),
        ({"seeds": (0, 1, 2)}, "seeds"),
        ({"arms": {"base": "Qwen3-1.7B", "adapter": "kids@" + "1" * 16}}, "arms"),
    ],
)
def test_a_folder_takes_one_run(
    make_run: Callable[[], Run], client: ApiClient, plan: Plan, changed: dict[str, Any], what: str
) -> None:
    run = make_run()
    with pytest.raises(RunDiffers, match=what):
        ask_all(client, replace(plan, **changed), run.folder)
    with pytest.raises(RunDiffers, match="scenarios_sha256"):
        ask_all(client, replace(plan, scenarios=plan.scenarios[:2]), run.folder)


def test_a_folder_of_something_else_is_left_alone(client: ApiClient, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunDiffers, match=r"thesis\.txt"):
        ask_all(client, plan, tmp_path)


def test_two_writers_do_not_meet_in_one_folder(client: ApiClient, plan: Plan, tmp_path: Path) -> None:
    with _only_one(tmp_path), pytest.raises(RunBusy):
        ask_all(client, plan, tmp_path)


def change_line(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    first, *rest = path.read_text(encoding="utf-8").splitlines(keepends=True)
    row = json.loads(first)
    change(row)
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n" + "".join(rest), encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        (lambda f: change_line(f / ANSWERS, lambda row: row.update(answer="别的")), AnswersDamaged),
        (lambda f: (f / ANSWERS).write_bytes((f / ANSWERS).read_bytes()[:-40]), AnswersDamaged),
        (lambda f: (f / ANSWERS).unlink(), AnswersMissing),
        (lambda f: (f / RECORD).unlink(), AnswersMissing),
        (lambda f: (f / RECORD).write_text("{"), AnswersDamaged),
        (lambda f: (f / SCENARIOS).unlink(), AnswersMissing),
        (lambda f: change_line(f / SCENARIOS, lambda row: row.update(title="别的")), AnswersDamaged),
        (lambda f: (f / SCENARIOS).write_text("{}\n"), AnswersDamaged),
    ],
)
def test_what_was_touched_is_not_read(
    make_run: Callable[[], Run], harm: Callable[[Path], Any], error: type[AnswersError]
) -> None:
    run = make_run()
    assert read_run(run.folder) == run
    harm(run.folder)
    with pytest.raises(error):
        read_run(run.folder)


def test_a_row_with_a_new_hash_of_the_file_is_still_found_out(make_run: Callable[[], Run]) -> None:
    import hashlib

    folder = make_run().folder
    change_line(folder / ANSWERS, lambda row: row.update(answer="别的"))
    digest = hashlib.sha256((folder / ANSWERS).read_bytes()).hexdigest()
    record = json.loads((folder / RECORD).read_text(encoding="utf-8")) | {"answers_sha256": digest}
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(AnswersDamaged, match="line 1 was changed"):
        read_run(folder)


def test_the_command_answers_measures_and_goes_on_with_the_version_it_began(
    api: FakeApi, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "scenarios.jsonl", tmp_path / "run"
    file.write_text(dump_scenarios(plan.scenarios), encoding="utf-8")
    command = ["answer", "--out", str(out), "--url", api.url, "--adapter", "kids", "--scenarios", str(file)]
    assert main([*command, "--seeds", "1"]) == 0
    assert main([*command, "--seeds", "1"]) == 0
    assert len(api.asked) == 6
    told = capsys.readouterr()
    assert "no rater was asked" in told.out
    assert "answer: 6/6" in told.err
    figures = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert figures["arms"]["adapter"]["emergency_recall"] == 1
    assert {body["enable_thinking"] for body in api.asked} == {True}
    assert main([*command, "--seeds", "2"]) == 2
    assert "RunDiffers" in capsys.readouterr().err
    assert main([*command, "--only", "t09"]) == 2
    assert "there is no scenario 't09'" in capsys.readouterr().err
