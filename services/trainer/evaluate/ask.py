"""Asks both arms the same scenarios with the same settings, in turn, and keeps every answer at once.

The arms alternate and the first of each pair changes, so that a server that grows slow or warm in the middle of the run
does so for both. What was answered is on the disk before the next question is sent; a run that was cut off goes on where
it was, and asks nothing twice.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from services.contract.adapter_manifest import VERSION_FORM
from services.contract.staging import sync_file
from services.trainer.evaluate.answers import (
    ANSWERS,
    ARMS,
    RECORD,
    SCENARIOS,
    Answer,
    AnswersDamaged,
    AnswersError,
    Arm,
    Run,
    RunRecord,
    dump_answers,
    finish_run,
    make_answer,
    parse_answers,
    read_record,
    read_run,
    read_run_scenarios,
    replace_file,
    write_record,
)
from services.trainer.evaluate.api_client import ApiClient, ServerError
from services.trainer.evaluate.scenario import Scenario, dump_scenarios, scenarios_sha256
from services.trainer.run_record import TRAINER_VERSION


class RunDiffers(AnswersError):
    """The folder holds a run that was asked differently: its answers and new ones could not be compared."""


class RunBusy(AnswersError):
    """Another `answer` is writing in the folder."""


class WrongModel(ServerError):
    """The server has not the model of an arm, or answered with another."""


@dataclass(frozen=True)
class Plan:
    """What to ask. `settings` go into every request as they are; `arms` are the pinned model names."""

    scenarios: tuple[Scenario, ...]
    arms: dict[Arm, str]
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    system: str


@dataclass(frozen=True)
class Question:
    """One request to send."""

    scenario: Scenario
    arm: Arm
    seed: int

    @property
    def key(self) -> tuple[str, Arm, int]:
        return self.scenario.id, self.arm, self.seed


OnAnswer = Callable[[int, int, Answer | None], None]


# Which models


def resolve_arms(client: ApiClient, base: str, adapter: str) -> dict[Arm, str]:
    """Model names with the adapter's exact version. Raises `WrongModel` naming what the server has."""
    models = [str(card.get("id")) for card in client.get("/v1/models").get("data", [])]
    if base not in models:
        raise WrongModel(f"the server has no model {base[:80]!r}: give --base one of {', '.join(models) or 'none'}")
    name, _, version = adapter.partition("@")
    known = {str(entry.get("name")): entry for entry in client.get("/v1/adapters").get("data", [])}
    if name not in known:
        raise WrongModel(
            f"the server has no adapter {name[:80]!r}: it has {', '.join(known) or 'none'}. Publish it first"
        )
    version = version or str(known[name].get("current") or "")
    states = {str(entry.get("version")): entry for entry in known[name].get("versions", [])}
    if not VERSION_FORM.fullmatch(version) or version not in states:
        raise WrongModel(f"the server has {name} in the versions {', '.join(states) or 'none'}, not {version[:40]!r}")
    if states[version].get("state") == "refused":
        raise WrongModel(f"the server refuses {name}@{version}: {states[version].get('reason')}")
    return {"base": base, "adapter": f"{name}@{version}"}


# The order


def questions(plan: Plan) -> list[Question]:
    """Every question once: arms next to each other, and the arm that goes first changes from pair to pair."""
    pairs = [(scenario, seed) for seed in plan.seeds for scenario in plan.scenarios]
    return [
        Question(scenario, arm, seed)
        for n, (scenario, seed) in enumerate(pairs)
        for arm in (ARMS if n % 2 == 0 else ARMS[::-1])
    ]


# Asking


def ask_all(
    client: ApiClient,
    plan: Plan,
    folder: Path,
    *,
    concurrency: int = 2,
    on_answer: OnAnswer = lambda done, total, answer: None,
) -> Run:
    """Asks what `folder` does not hold yet, and seals the run. `on_answer` is told how many of how many are there.

    Raises `RunDiffers`, `RunBusy`, `ServerError`; what was answered until then is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder):
        record = _open_record(client, folder, plan)
        if record.answers_sha256 is not None:
            run = read_run(folder)
            on_answer(len(run.answers), len(run.answers), None)
            return run
        kept = _read_partial(folder)
        everything = questions(plan)
        open_keys = [q for q in everything if q.key not in {answer.key for answer in kept}]
        on_answer(len(kept), len(everything), None)
        for answer in _answers(client, plan, open_keys, folder, concurrency):
            kept.append(answer)
            on_answer(len(kept), len(everything), answer)
        finish_run(folder, record, kept, plan.scenarios)
        return read_run(folder)


def _answers(
    client: ApiClient, plan: Plan, wanted: Sequence[Question], folder: Path, concurrency: int
) -> Iterator[Answer]:
    """Answers as they come, each on the disk before it is given out."""
    waiting = iter(wanted)
    client.stop.clear()
    with (
        (folder / ANSWERS).open("ab") as file,
        concurrent.futures.ThreadPoolExecutor(max_workers=concurrency) as threads,
    ):
        running: set[concurrent.futures.Future[Answer]] = set()
        try:
            while True:
                # Only as many as are sent: the order of the rest is kept, and nothing is asked after a failure.
                for question in _take(waiting, concurrency - len(running)):
                    running.add(threads.submit(_ask, client, plan, question))
                if not running:
                    return
                done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                yield from _keep(file, done)
        except BaseException:
            client.stop.set()
            # The other requests are on their way: their answers were paid for, and are kept when they come.
            done, _ = concurrent.futures.wait(running)
            for future in done:
                with contextlib.suppress(Exception):
                    list(_keep(file, {future}))
            raise


def _take(waiting: Iterator[Question], count: int) -> Iterator[Question]:
    for _, question in zip(range(count), waiting, strict=False):
        yield question


def _keep(file: Any, done: set[concurrent.futures.Future[Answer]]) -> Iterator[Answer]:
    """Writes the answers among `done`; then raises the first error among them."""
    failures = [error for future in done if (error := future.exception()) is not None]
    for future in done:
        if future.exception() is None:
            answer = future.result()
            file.write(dump_answers([answer]))
            file.flush()
            sync_file(file.fileno())
            yield answer
    if failures:
        raise failures[0]


def _ask(client: ApiClient, plan: Plan, question: Question) -> Answer:
    model = plan.arms[question.arm]
    system = [{"role": "system", "content": plan.system}] if plan.system else []
    messages = [*system, *question.scenario.messages]
    began = time.monotonic()
    reply = client.post(
        "/v1/chat/completions",
        {**plan.settings, "model": model, "messages": messages, "seed": question.seed, "stream": False},
    )
    seconds = time.monotonic() - began
    try:
        return _answer(reply, question, messages, model, seconds)
    except (KeyError, IndexError, TypeError, AttributeError, ValidationError) as error:
        raise ServerError(
            f"{client.url} answers in another form ({str(error)[:80]!r}): is it a MedThink API?"
        ) from error


def _answer(
    reply: dict[str, Any], question: Question, messages: list[dict[str, str]], model: str, seconds: float
) -> Answer:
    choice = reply["choices"][0]
    message, used = choice["message"], reply.get("adapter")
    served = f"{used['name']}@{used['version']}" if used else None
    if served != (model if question.arm == "adapter" else None):
        raise WrongModel(
            f"{model} was asked and {served or 'the base model'} answered: leave the adapter published, ask in a new folder"
        )
    return make_answer(
        {
            "scenario": question.scenario.id,
            "arm": question.arm,
            "seed": question.seed,
            "question": question.scenario.question,
            "messages": messages,
            "reasoning": message.get("reasoning_content") or message.get("reasoning") or "",
            "answer": message.get("content") or "",
            "finish_reason": choice.get("finish_reason") or "",
            "thinking_truncated": bool(choice.get("thinking_truncated")),
            "safety": reply.get("safety") or {},
            "usage": reply.get("usage") or {},
            "seconds": round(seconds, 4),
        }
    )


# The folder


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Raises `RunBusy` when another process asks into this folder."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise RunBusy(
                    f"another `answer` is writing into {folder}: let it end, or give another --out"
                ) from error
            # else: a volume without locks, where one writer is the operator's care
        yield
    finally:
        os.close(descriptor)


def _open_record(client: ApiClient, folder: Path, plan: Plan) -> RunRecord:
    """The record of the run that is in the folder, or of a new one. Raises `RunDiffers`."""
    ours: dict[str, Any] = {
        "settings": {**plan.settings, "system": plan.system},
        "arms": plan.arms,
        "seeds": plan.seeds,
        "scenarios_sha256": scenarios_sha256(plan.scenarios),
    }
    if (folder / RECORD).exists():
        record = read_record(folder)
        read_run_scenarios(folder, record)
        for what, value in ours.items():
            if getattr(record, what) != value:
                raise RunDiffers(f"{folder} holds a run with other {what}: give another --out, or the same command")
        return record
    if strange := sorted(path.name for path in folder.iterdir() if path.name[0] != "." and path.name != SCENARIOS):
        raise RunDiffers(f"{folder} holds {strange[0]!r} and no {RECORD}: give --out a new folder")
    server = client.get("/version")
    replace_file(folder / SCENARIOS, dump_scenarios(plan.scenarios).encode())
    record = RunRecord(created=time.time(), tool=f"medthink {TRAINER_VERSION}", server=server, **ours)
    write_record(folder, record)
    return record


def _read_partial(folder: Path) -> list[Answer]:
    """What an earlier call left; a line that was cut off in the middle is dropped from the file as well."""
    path = folder / ANSWERS
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        replace_file(path, whole)
    answers = parse_answers(whole, str(path))
    if len({answer.key for answer in answers}) < len(answers):
        raise AnswersDamaged(f"{path} holds an answer twice: ask again in a new folder")
    return answers
