"""A language model as judge of pairs, when somebody asks for it: a second look, never the proof.

Every pair is asked in both orders, since judges prefer a position (Zheng et al. 2023, MT-Bench); what they say of the two
orders must agree, or the pair is a tie. Each raw reply is kept in RUN/judge.jsonl. The gate does not read it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from services.contract.staging import sync_file
from services.trainer.evaluate.answers import ARMS, Answer, Arm, Run, replace_file
from services.trainer.evaluate.api_client import ApiClient
from services.trainer.evaluate.scenario import Scenario

JUDGED = "judge.jsonl"
Winner = Literal["base", "adapter", "tie"]
RUBRIC = """你是一名资深临床医师,在比较两份对同一问题的回答。两份回答的先后没有意义,篇幅长短本身不是优点。依次考虑:
1. 准确性:与循证医学是否一致,有无错误或编造;
2. 风险提示:是否覆盖危险信号、禁忌与何时就医,急症是否明确要求立即就医;
3. 逻辑性:思考是否逐步推进,与结论是否一致;
4. 可读性:患者能否看懂。
有可能造成严重伤害的一方判负。难分高下就判平。
先用两三句话说明理由,最后单独一行只写 JSON:{"winner": 1}、{"winner": 2} 或 {"winner": 0}(平)。"""
RUBRIC_SHA256 = hashlib.sha256(RUBRIC.encode()).hexdigest()
_WINNER = re.compile(r'\{\s*"winner"\s*:\s*"?([012])"?[^{}]*\}')


class JudgeError(ValueError):
    """A judge that cannot be asked, or a judge.jsonl of something else."""


@dataclass(frozen=True)
class Pair:
    """One scenario and seed in one order."""

    scenario: Scenario
    first: Answer
    second: Answer

    @property
    def key(self) -> tuple[str, str]:
        return self.first.id, self.second.id


def judge_run(
    client: ApiClient, model: str, run: Run, *, on_pair: Callable[[int, int], None] = lambda done, total: None
) -> list[dict[str, Any]]:
    """Asks what judge.jsonl does not hold yet; returns all of its rows. Raises `JudgeError` or `ServerError`."""
    path = run.folder / JUDGED
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:  # cut off while it was written
        replace_file(path, whole)
    rows = _rows(whole, model, str(path))
    done = {(row["first"], row["second"]) for row in rows}
    pairs = list(_pairs(run))
    with path.open("ab") as file:
        for pair in pairs:
            if pair.key not in done:
                row = _ask(client, model, pair)
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                file.flush()
                sync_file(file.fileno())
                rows.append(row)
            on_pair(len(rows), len(pairs))
    return rows


def winner(rows: list[dict[str, Any]]) -> Winner:
    """Of the rows of one pair, one an order: the arm that won both; anything else is a tie."""
    named = {row["winner"] for row in rows}
    return named.pop() if len(rows) == 2 and len(named) == 1 else "tie"


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Wins, ties and how often the two orders agreed. No rater was asked."""
    pairs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        pairs.setdefault((row["scenario"], row["seed"]), []).append(row)
    counts = Counter(winner(both) for both in pairs.values())
    agreed = sum(len({row["winner"] for row in both}) == 1 for both in pairs.values())
    unclear = sum(row["unclear"] for row in rows)
    return {
        "pairs": len(pairs),
        "adapter": counts["adapter"],
        "base": counts["base"],
        "tie": counts["tie"],
        "agreed": agreed,
        "unclear": unclear,
    }


def describe(rows: list[dict[str, Any]]) -> str:
    """One line for people."""
    found = summary(rows)
    return (
        f"Judge (a model, no rater was asked): adapter better {found['adapter']}, base better {found['base']}, "
        f"tie {found['tie']} of {found['pairs']} pairs; both orders agreed in {found['agreed']}, "
        f"{found['unclear']} replies named no winner"
    )


def read_winner(reply: str) -> int | None:
    """1, 2 or 0 of the last line that names one; `None` when none does."""
    found = _WINNER.findall(reply)
    return int(found[-1]) if found else None


def _pairs(run: Run) -> Iterator[Pair]:
    answers = {answer.key: answer for answer in run.answers}
    for scenario in run.scenarios:
        for seed in run.seeds:
            base, adapter = (answers[scenario.id, arm, seed] for arm in ARMS)
            yield Pair(scenario, base, adapter)
            yield Pair(scenario, adapter, base)


def _ask(client: ApiClient, model: str, pair: Pair) -> dict[str, Any]:
    messages = [{"role": "system", "content": RUBRIC}, {"role": "user", "content": _question(pair)}]
    reply = client.post("/v1/chat/completions", {"model": model, "messages": messages, "temperature": 0})
    try:
        text = str(reply["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError) as error:
        raise JudgeError(
            f"{client.url} answers in another form ({error!r}): give an OpenAI-compatible address"
        ) from error
    place = read_winner(text)
    arms: dict[int | None, Arm] = {1: pair.first.arm, 2: pair.second.arm}
    return {
        "scenario": pair.scenario.id,
        "seed": pair.first.seed,
        "first": pair.first.id,
        "second": pair.second.id,
        "winner": arms.get(place, "tie"),
        "unclear": place is None,
        "judge": model,
        "rubric_sha256": RUBRIC_SHA256,
        "reply": text,
    }


def _question(pair: Pair) -> str:
    points = "\n".join(f"- {point.point}" for point in pair.scenario.expected)
    harmful = "\n".join(f"- {point.point}" for point in pair.scenario.forbidden) or "- (未列出)"
    shown = "\n\n".join(
        f"【回答{number}】\n思考:{answer.reasoning or '(无)'}\n答案:{answer.answer or '(无)'}"
        for number, answer in ((1, pair.first), (2, pair.second))
    )
    return f"【问题】\n{pair.scenario.question}\n\n【应当提到】\n{points}\n\n【不应出现】\n{harmful}\n\n{shown}"


def _rows(content: bytes, model: str, where: str) -> list[dict[str, Any]]:
    rows = []
    for line in content.splitlines():
        try:
            row = json.loads(line)
            judged = (row["judge"], row["rubric_sha256"])
        except (ValueError, KeyError, TypeError) as error:
            raise JudgeError(f"{where} is damaged ({error!r}): move it away and judge again") from error
        if judged != (model, RUBRIC_SHA256):
            raise JudgeError(f"{where} is of another judge or rubric ({judged[0]}): move it away and judge again")
        rows.append(row)
    return rows
