"""A small study without a server: answers, key, seal and packets on the disk, as `answer` and `blind` leave them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.trainer.evaluate.answers import ARMS, RunRecord, finish_run, make_answer, write_record
from services.trainer.evaluate.collect import SEAL
from services.trainer.evaluate.scenario import Scenario, dump_scenarios, scenarios_sha256
from services.trainer.evaluate.sheets import Item, Key, KeyItem, Packet, RaterKey, Reply, Seal, Sheet, content_sha256
from tests.trainer.evaluate.fake_api import ADAPTER

STUDY = "5" * 16


@dataclass(frozen=True)
class Study:
    """Paths of what is on the disk, and the key as an object."""

    run: Path
    packets: Path
    key_path: Path
    sheets: Path
    key: Key

    def write(self, sheet: Sheet, name: str = "") -> Path:
        path = self.sheets / f"{name or sheet.rater}.json"
        path.write_text(sheet.model_dump_json(), encoding="utf-8")
        return path


def make_scenario(number: int, *, is_urgent: bool = False) -> Scenario:
    urgent: dict[str, Any] = {
        "red_flags": [{"point": "胸痛", "phrases": ["胸痛"]}],
        "urgent": {"point": "急诊", "phrases": ["立即就诊"]},
    }
    plain = {
        "id": f"t{number:02d}",
        "department": "内科",
        "title": f"题{number}",
        "turns": [{"role": "user", "content": f"问题{number}?<b>"}],
        "expected": [{"point": "就诊", "phrases": ["就诊"]}],
        "sources": [{"name": "NICE", "url": "https://www.nice.org.uk/guidance/ng136"}],
    }
    return Scenario.model_validate(plain | (urgent if is_urgent else {}))


def make_study(folder: Path, scenarios: int = 12, raters: int = 5, repeats: int = 1) -> Study:
    """One seed, sides at random, `repeats` items of each rater shown again with the sides swapped, one practice item."""
    dice = random.Random(scenarios * 1000 + raters)
    run, packets, sheets = (folder / name for name in ("run", "packets", "sheets"))
    for path in (run, packets, sheets):
        path.mkdir(parents=True)
    answers_sha256 = _write_run(run, tuple(make_scenario(n, is_urgent=n % 3 == 0) for n in range(scenarios)))
    reply = Reply(reasoning="首先", answer="就诊")
    parts = {}
    for rater in (f"R{n + 1}" for n in range(raters)):
        items = [
            KeyItem(id=f"{dice.getrandbits(48):012x}", scenario=f"t{n:02d}", seed=0, A=dice.choice(ARMS))
            for n in range(scenarios)
        ]
        again = [
            i.model_copy(update={"id": f"{dice.getrandbits(48):012x}", "A": i.arm("B"), "repeat_of": i.id})
            for i in items[:repeats]
        ]
        shown = [Item(id=i.id, question="?", replies={"A": reply, "B": reply}) for i in [*items, *again]]
        practice = (Item(id="0" * 12, question="?", replies={"A": reply, "B": reply}),)
        packet = Packet(study=STUDY, rater=rater, practice=practice, items=tuple(shown))
        (packets / f"{rater}.json").write_text(packet.model_dump_json(), encoding="utf-8")
        parts[rater] = RaterKey(packet_sha256=content_sha256(packet), items=(*items, *again))
    key = Key(study=STUDY, salt="a" * 64, answers_sha256=answers_sha256, raters=parts)
    hashes = {rater: part.packet_sha256 for rater, part in parts.items()}
    seal = Seal(study=STUDY, key_sha256=content_sha256(key), raters=hashes, created=1.0)
    (packets / SEAL).write_text(seal.model_dump_json(), encoding="utf-8")
    key_path = folder / "key.json"
    key_path.write_text(key.model_dump_json(), encoding="utf-8")
    return Study(run, packets, key_path, sheets, key)


def _write_run(folder: Path, scenarios: tuple[Scenario, ...]) -> str:
    record = RunRecord(
        settings={"temperature": 0.6},
        arms={"base": "Qwen3-1.7B", "adapter": ADAPTER},
        seeds=(0,),
        scenarios_sha256=scenarios_sha256(scenarios),
        created=1.0,
    )
    (folder / "scenarios.jsonl").write_text(dump_scenarios(scenarios), encoding="utf-8")
    write_record(folder, record)
    answers = [
        make_answer(
            {
                "scenario": scenario.id,
                "arm": arm,
                "seed": 0,
                "question": scenario.question,
                "messages": scenario.messages,
                "reasoning": "首先看症状。其次排除。最后就医。",
                "answer": f"请立即就诊。<script>alert('{arm}')</script>",
                "finish_reason": "stop",
                "thinking_truncated": False,
                "safety": {"verdict": "pass"},
                "usage": {"completion_tokens": 12},
                "seconds": 1.0,
            }
        )
        for scenario in scenarios
        for arm in ARMS
    ]
    finished = finish_run(folder, record, answers, scenarios)
    assert finished.answers_sha256
    return finished.answers_sha256
