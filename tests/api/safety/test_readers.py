"""Reading beside the server gives the case that reading here gives, and a broken reader never lets a conversation go unread."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.api.safety import readers as module
from services.api.safety.case import Case
from services.api.safety.judge import Judge
from services.api.safety.policy import FOLDER, MAIN, read_policy
from services.api.safety.readers import SHORT, Readers
from services.api.safety.rules import default_rules
from services.api.safety.sentences import SentenceCutter

CASES = Path(__file__).parent / "cases" / "develop.jsonl"
LONG = "我突然胸口像石头压着，出冷汗，左胳膊发麻。" + "前天吃了阿司匹林。" * (SHORT // 8)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(read_policy(), default_rules())


def conversation(row: dict[str, Any]) -> list[tuple[str, str]]:
    if "messages" in row:
        return [(message["role"], message["content"]) for message in row["messages"]]
    return [("user", row["user"])]


def told(judge: Judge, case: Case, reply: str) -> Any:
    """The whole judgement of a reply."""
    cutter, start = SentenceCutter(), 0
    for sentence in [*cutter.add(reply), *cutter.end()]:
        judge.sentence(case, "answer", sentence, start)
        start += len(sentence)
    return judge.end(case)


def test_a_case_that_travelled_judges_as_one_that_did_not(judge: Judge) -> None:
    rows = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    assert len(rows) > 100
    for row in rows:
        messages = conversation(row)
        travelled = module._unpacked(module._packed(judge.open(messages)), judge.policy)
        here = judge.open(messages)
        assert (travelled.facts, travelled.hits, travelled.language) == (here.facts, here.hits, here.language)
        assert travelled.policy is judge.policy
        assert told(judge, travelled, row["reply"]) == told(judge, here, row["reply"])


@contextlib.asynccontextmanager
async def running(folder: Path = FOLDER, count: int = 1) -> AsyncIterator[Readers]:
    readers = Readers(folder, count)
    task = asyncio.create_task(readers.run())
    while readers._pool is None:  # noqa: ASYNC110 - it has no event of its own
        await asyncio.sleep(0.01)
    try:
        yield readers
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def processes(readers: Readers) -> list[int]:
    assert readers._pool is not None
    return list(readers._pool._processes)


def not_here(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: Any) -> Case:
        raise AssertionError("read here")

    monkeypatch.setattr(judge, "open", opened)


async def test_a_long_question_is_read_beside_and_a_short_one_here(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = judge.open([("user", LONG)], "系统")
    async with running() as readers:
        with monkeypatch.context() as patch:
            not_here(judge, patch)
            case = await readers.open(judge, [("user", LONG)], "系统")
            with pytest.raises(AssertionError, match="read here"):
                await readers.open(judge, [("user", "胸痛")], None)
        left = processes(readers)
    assert (case.facts, case.hits, case.system_prompt) == (here.facts, here.hits, "系统")
    assert "red_flag_input" in case.facts
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in left if psutil.pid_exists(pid)], timeout=20)
    assert alive == [], "no process is left behind"


async def test_a_killed_reader_is_replaced_and_nothing_goes_unread(judge: Judge) -> None:
    here = judge.open([("user", LONG)])
    async with running() as readers:
        await readers.open(judge, [("user", LONG)], None)
        for pid in processes(readers):
            os.kill(pid, signal.SIGKILL)
        cases = await asyncio.gather(*(readers.open(judge, [("user", LONG)], None) for _ in range(8)))
        assert all((case.facts, case.hits) == (here.facts, here.hits) for case in cases)
        again = await readers.open(judge, [("user", LONG)], None)
        assert again.facts == here.facts
        assert processes(readers)


async def test_a_policy_that_changed_is_read_by_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(FOLDER, folder)
    old = Judge(read_policy(folder), default_rules())
    async with running(folder) as readers:
        await readers.open(old, [("user", LONG)], None)
        main = (folder / MAIN).read_text(encoding="utf-8")
        (folder / MAIN).write_text(main + "\n# changed\n", encoding="utf-8")
        new = Judge(read_policy(folder), default_rules())
        assert new.label != old.label
        for judge in (new, old):  # a request that began under the old one keeps it
            with monkeypatch.context() as patch:
                not_here(judge, patch)
                case = await readers.open(judge, [("user", LONG)], None)
            assert case.policy is judge.policy
        (folder / MAIN).write_text("broken: [", encoding="utf-8")
        assert (await readers.open(new, [("user", LONG)], None)).policy is new.policy


async def test_without_readers_everything_is_read_here(judge: Judge) -> None:
    readers = Readers(FOLDER, 0)
    await readers.run()
    assert (await readers.open(judge, [("user", LONG)], None)).facts == judge.open([("user", LONG)]).facts
