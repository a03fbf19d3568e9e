"""The whole loop for a newcomer: prepare, plan, train, publish, and the running API answers differently seconds later.

Asks the server the trained questions before and after, over HTTP as any client does, and prints how near its answers are
to those that were taught. The example set shows the machinery; nothing is learnt here that a patient should be told.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = Path(__file__).parent / "examples" / "children_medicines.jsonl"
REHEARSAL = Path(__file__).parent / "examples" / "rehearsal.jsonl"
CONFIG = ROOT / "deploy" / "configs" / "train-demo.yaml"
SERVED_WITHIN_S = 60.0
MOST_QUESTIONS = 8

Command = Callable[[Sequence[str]], int]


class LoopError(RuntimeError):
    """A step that cannot be taken; one line with the cause and the next step."""


@dataclass(frozen=True)
class Question:
    """A taught question and its answer."""

    text: str
    answer: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the running API (default: %(default)s)")
    parser.add_argument("--volume", type=Path, default=ROOT / "adapters", help="folder that trainer and server share")
    parser.add_argument("--name", default="children-medicines", help="name that clients ask for")
    parser.add_argument("--base", type=Path, default=ROOT / "deploy" / "demo", help="the model that the server serves")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "train-demo", help="folder for data and run")
    parser.add_argument("--example", type=Path, default=EXAMPLE, help="JSONL of dialogues to learn")
    parser.add_argument("--rehearsal", type=Path, default=REHEARSAL, help="JSONL of dialogues to keep up beside it")
    parser.add_argument("--key", default="EMPTY", help="API key, when the server asks for one")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the training")


def run(options: argparse.Namespace, command: Command) -> int:
    """0 when the server answers as taught; 1 with one line for the step that failed. `command` runs a trainer command."""
    try:
        _loop(options, command)
    except LoopError as error:
        print(f"train-demo: {error}", file=sys.stderr)
        return 1
    return 0


def _loop(options: argparse.Namespace, command: Command) -> None:
    begun = time.monotonic()
    server = Server(options.url, options.key)
    served = server.is_ready()
    if not served:
        print(f"No server is ready at {options.url}: run `make serve` in another terminal to see the adapter served.")
    data = options.out / "data"
    trained = options.out / time.strftime("run-%Y%m%d-%H%M%S")  # a run's folder is never used twice
    _step(
        1,
        "prepare",
        command,
        [
            "prepare",
            str(options.example),
            str(options.rehearsal),
            "--out",
            str(data),
            "--base",
            str(options.base),
            "--overwrite",
        ],
    )
    questions = trained_questions(options.example, data)[:MOST_QUESTIONS]
    before = server.answers("Qwen3-1.7B", questions) if served else []

    settings = [f"base={options.base}", f"data={data}", f"out={trained}", *options.set]
    shared = ["--config", str(CONFIG), *(part for setting in settings for part in ("--set", setting))]
    _step(2, "plan", command, ["plan", *shared])
    _step(3, "train", command, ["train", *shared])
    options.volume.mkdir(
        parents=True, exist_ok=True
    )  # a newcomer's first; publish itself refuses one that is not there
    where = ["--name", options.name, "--volume", str(options.volume), "--base", str(options.base)]
    _step(4, "publish", command, ["publish", "--run", str(trained), *where])
    published = time.monotonic()
    if not served:
        print(f"\nPublished. Start the server and ask for the model {options.name!r}.")
        return
    print(f"\n[5/5] waiting until {options.url} serves it", flush=True)
    version = server.wait_for(options.name, _current(options.volume, options.name))
    print(
        f"      served as {options.name}@{version}, {time.monotonic() - published:.1f} s after it was published",
        flush=True,
    )
    after = server.answers(options.name, questions)
    print("\n" + table(questions, before, after))
    print(f"\nThe whole loop took {time.monotonic() - begun:.0f} s. Roll back: python -m services.trainer rollback "
          f"--name {options.name} --volume {options.volume}")  # fmt: skip


def _step(number: int, name: str, command: Command, arguments: list[str]) -> None:
    print(f"\n[{number}/5] {name}", flush=True)
    status = command(arguments)
    if status:
        raise LoopError(f"{name} ended with status {status}; its own message above says why")


def _current(volume: Path, name: str) -> str:
    from services.contract.adapter_manifest import read_current

    version = read_current(volume, name)
    if version is None:
        raise LoopError(f"{volume} has no current version of {name}")
    return version


def read_questions(path: Path) -> list[Question]:
    """The taught questions of a JSONL of dialogues. Raises `LoopError`."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [Question(row["question"], row["answer"]) for row in rows]
    except (OSError, ValueError, KeyError) as error:
        raise LoopError(f"cannot read {path}: {error}") from error


def trained_questions(example: Path, data: Path) -> list[Question]:
    """Those of the example that `prepare` put into the training split: the others are held out, and nobody learns them."""
    try:
        lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
        learned = {m["content"] for line in lines for m in json.loads(line)["messages"] if m["role"] == "user"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoopError(f"cannot read what prepare wrote into {data}: {error}") from error
    return [question for question in read_questions(example) if question.text in learned]


def overlap(answer: str, reference: str) -> float:
    """F1 of the bags of character bigrams, 0 to 1: 2 x common / (bigrams of both)."""
    ours, theirs = (Counter(itertools.pairwise(text)) for text in (answer, reference))
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 0.0


def table(questions: Sequence[Question], before: Sequence[str], after: Sequence[str]) -> str:
    """Mean overlap with the taught answers before and after, and three examples."""
    scores = [[overlap(a, q.answer) for a, q in zip(answers, questions, strict=True)] for answers in (before, after)]
    means = [sum(s) / len(s) for s in scores]
    lines = [f"Overlap of {len(questions)} answers with what was taught: before {means[0]:.2f}, after {means[1]:.2f}"]
    for q, old, new in list(zip(questions, before, after, strict=True))[:3]:
        lines += [
            "",
            f"  question  {q.text}",
            f"  before    {old[:70]}",
            f"  after     {new[:70]}",
            f"  taught    {q.answer[:70]}",
        ]
    return "\n".join(lines)


class Server:
    """The running API, as a client sees it."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._key = key

    def is_ready(self) -> bool:
        try:
            return bool(self._get("/readyz").get("status") == "ready")
        except (LoopError, OSError):
            return False

    def answers(self, model: str, questions: Sequence[Question]) -> list[str]:
        """One greedy answer a question, in order."""
        found = []
        for n, question in enumerate(questions):
            message = {"role": "user", "content": question.text}
            body = {"model": model, "messages": [message], "temperature": 0, "max_tokens": 400}
            reply = self._post("/v1/chat/completions", body)
            found.append(reply["choices"][0]["message"]["content"] or "")
            print(f"\r      asking {model}: {n + 1}/{len(questions)}", end="", flush=True)
        print(flush=True)
        return found

    def wait_for(self, name: str, version: str) -> str:
        """Until `version` is current on the server. Raises `LoopError` with the server's reason when it is refused."""
        deadline = time.monotonic() + SERVED_WITHIN_S
        while time.monotonic() < deadline:
            for adapter in self._get("/v1/adapters")["data"]:
                if adapter["name"] != name:
                    continue
                if adapter["current"] == version:
                    return version
                for known in adapter["versions"]:
                    if known["version"] == version and known["state"] == "refused":
                        raise LoopError(f"the server refuses {name}@{version}: {known['reason']}")
            time.sleep(0.1)
        raise LoopError(
            f"the server did not take up {name}@{version} in {SERVED_WITHIN_S:.0f} s: does it watch this volume?"
        )

    def _get(self, path: str) -> dict[str, Any]:
        return self._send(urllib.request.Request(self._url + path))

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        return self._send(urllib.request.Request(self._url + path, json.dumps(body).encode(), headers))

    def _send(self, request: urllib.request.Request) -> dict[str, Any]:
        request.add_header("Authorization", f"Bearer {self._key}")
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            raise LoopError(f"{request.full_url} answered {error.code}: {error.read().decode()[:200]}") from error
        except urllib.error.URLError as error:
            raise LoopError(f"{request.full_url} does not answer ({error.reason}): is `make serve` running?") from error
