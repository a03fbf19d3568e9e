"""Makes a study of a run: a packet for each rater, and the key that says which answer was whose.

Everything that a rater could tell the arms apart by is drawn at random or made alike: ids, order, sides and white space.
What the models wrote is left as it is.
"""

from __future__ import annotations

import json
import random
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from services.trainer.evaluate.answers import ARMS, Answer, Arm, Run
from services.trainer.evaluate.sheets import Item, Key, KeyItem, Packet, RaterKey, Reply, SheetError, content_sha256

RATER_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
LEAST_SCENARIOS, LEAST_RATERS = 6, 2  # with fewer the report has no interval, and the gate refuses it
REPEATED = 0.1  # share of items shown again, to see how far raters agree with themselves
NO_REASONING, NO_ANSWER = "(没有思考过程 no reasoning)", "(没有给出回答 no answer)"
_PRACTICE = Path(__file__).parent / "form" / "practice.json"
_FAILED = ("error", "abort")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\ufeff]")
_NEWLINE = re.compile(r"\r\n|[\r\u0085\u2028\u2029]")


class RunTooSmall(SheetError):
    """Too few scenarios for a report with an interval."""


class AnswerFailed(SheetError):
    """An answer that ended with an error is no answer of a model."""


class ArmNamed(SheetError):
    """A reply names its own model: whoever reads it knows the arm."""


class RatersWrong(SheetError):
    """Names of raters, or their number, that cannot be used."""


@dataclass(frozen=True)
class _Slot:
    """One place in a rater's order. `of`: the place of the original that it repeats."""

    scenario: str
    side_a: Arm
    id: str
    repeat_of: str | None = None


def make_packets(run: Run, raters: Sequence[str], dice: random.Random) -> tuple[list[Packet], Key]:
    """A packet of each rater, and the key. Study and salt are drawn from the system, never from `dice`.

    Each scenario is rated with one seed of the run, the same for all raters. Raises a `SheetError` of this module.
    """
    check_raters(raters)
    if len(run.scenarios) < LEAST_SCENARIOS:
        raise RunTooSmall(
            f"{run.folder} has {len(run.scenarios)} scenarios, a report needs {LEAST_SCENARIOS} and thirty are better: "
            "ask more in a new folder"
        )
    pairs = _choose_pairs(run, dice)
    sides = _draw_sides(list(pairs), len(raters), dice)
    study = secrets.token_hex(8)
    packets, parts = [], {}
    for rater, side_of in zip(raters, sides, strict=True):
        slots = _order(side_of, dice)
        shown = tuple(_item(slot.id, pairs[slot.scenario], slot.side_a) for slot in slots)
        packet = Packet(study=study, rater=rater, practice=_practice(dice), items=shown)
        packets.append(packet)
        key_items = tuple(
            KeyItem(
                id=slot.id,
                scenario=slot.scenario,
                seed=pairs[slot.scenario]["base"].seed,
                A=slot.side_a,
                repeat_of=slot.repeat_of,
            )
            for slot in slots
        )
        parts[rater] = RaterKey(packet_sha256=content_sha256(packet), items=key_items)
    digest = run.record.answers_sha256
    assert digest is not None  # a finished run has it
    return packets, Key(study=study, salt=secrets.token_hex(32), answers_sha256=digest, raters=parts)


def check_raters(raters: Sequence[str]) -> None:
    """Raises `RatersWrong`."""
    if len(raters) < LEAST_RATERS:
        raise RatersWrong(f"{len(raters)} rater: agreement needs {LEAST_RATERS} or more, and five are better")
    for name in raters:
        if not RATER_FORM.fullmatch(name) or name.lower() == "seal":
            raise RatersWrong(
                f"{name!r} cannot name a rater: use a-z, A-Z, 0-9, '-' and '_', at most 32, and not 'seal'"
            )
    lower = [name.lower() for name in raters]
    if doubles := [name for n, name in enumerate(lower) if name in lower[:n]]:
        raise RatersWrong(f"two raters are named {doubles[0]!r} (case does not count): give each a name of its own")


# Which answers


def _choose_pairs(run: Run, dice: random.Random) -> dict[str, dict[Arm, Answer]]:
    """One seed of each scenario at random, among those in which no reply names its model."""
    by_key = {answer.key: answer for answer in run.answers}
    for answer in run.answers:
        if answer.finish_reason in _FAILED:
            raise AnswerFailed(
                f"{run.folder}: the answer to {answer.scenario} with seed {answer.seed} ended with "
                f"{answer.finish_reason!r}: ask again in a new folder"
            )
    names = _telling_names(run)
    pairs = {}
    for scenario in run.scenarios:
        options: list[dict[Arm, Answer]] = [{arm: by_key[scenario.id, arm, seed] for arm in ARMS} for seed in run.seeds]
        silent = [pair for pair in options if not any(names.search(_text(answer)) for answer in pair.values())]
        if not silent:
            raise ArmNamed(
                f"{run.folder}: with every seed, an answer to {scenario.id} names its own model, and raters would know "
                f"the arm: ask again in a new folder without it (`answer --only` names those to ask)"
            )
        pairs[scenario.id] = dice.choice(silent)
    return pairs


def _telling_names(run: Run) -> re.Pattern[str]:
    """Of both arms: the whole name, its version, and its first part unless that is a plain word (`cardio`)."""
    names: set[str] = set()
    for whole in run.record.arms.values():
        first, _, version = whole.partition("@")
        names |= {whole, version} | (set() if first.isalpha() else {first})
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True) if name), re.IGNORECASE)


def _text(answer: Answer) -> str:
    return f"{answer.reasoning}\n{answer.answer}"


# Where they stand


def _draw_sides(scenarios: Sequence[str], raters: int, dice: random.Random) -> list[dict[str, Arm]]:
    """Side A's arm by rater and scenario: each arm is A equally often for a rater, and for a scenario over raters (±1).

    Raters go in pairs with opposite sides; who is whose opposite is drawn too.
    """
    drawn: list[dict[str, Arm]] = []
    while len(drawn) < raters:
        sides = dict(zip(scenarios, _balanced(len(scenarios), dice.choice(ARMS), dice), strict=True))
        drawn += [sides, {scenario: _other(arm) for scenario, arm in sides.items()}]
    drawn = drawn[:raters]
    dice.shuffle(drawn)
    return drawn


def _order(side_of: dict[str, Arm], dice: random.Random) -> list[_Slot]:
    """A random order. Repeats come a third of the packet after their original, and never next to it."""
    slots = [_Slot(scenario, arm, _new_id(dice)) for scenario, arm in side_of.items()]
    dice.shuffle(slots)
    early = slots[: (len(slots) + 1) // 2]
    originals = dice.sample(early, max(1, round(REPEATED * len(slots))))
    fewer = min(ARMS, key=[slot.side_a for slot in slots].count)
    gap = max(2, len(slots) // 3)
    for original, arm in zip(originals, _balanced(len(originals), fewer, dice), strict=True):
        place = dice.randint(slots.index(original) + gap, len(slots))
        slots.insert(place, _Slot(original.scenario, arm, _new_id(dice), repeat_of=original.id))
    return slots


def _balanced(count: int, first: Arm, dice: random.Random) -> list[Arm]:
    """Both arms equally often; with an odd count `first` once more."""
    arms = [first if n % 2 == 0 else _other(first) for n in range(count)]
    dice.shuffle(arms)
    return arms


def _other(arm: Arm) -> Arm:
    return "base" if arm == "adapter" else "adapter"


def _new_id(dice: random.Random) -> str:
    return f"{dice.getrandbits(48):012x}"


# What the rater reads


def _item(item_id: str, pair: dict[Arm, Answer], side_a: Arm) -> Item:
    first, second = _reply(pair[side_a]), _reply(pair[_other(side_a)])
    return Item(id=item_id, question=plain(pair[side_a].question), replies={"A": first, "B": second})


def _reply(answer: Answer) -> Reply:
    """A blocked reply is shown as any other: its text is what the patient was left with."""
    return Reply(reasoning=plain(answer.reasoning) or NO_REASONING, answer=plain(answer.answer) or NO_ANSWER)


def plain(text: str) -> str:
    """White space in one normal form and without invisible characters: no habit of a template shows through."""
    lines = _CONTROL.sub("", _NEWLINE.sub("\n", text).replace("\t", "    ")).split("\n")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip()


@cache
def _practice_pairs() -> Any:
    return json.loads(_PRACTICE.read_text(encoding="utf-8"))


def _practice(dice: random.Random) -> tuple[Item, ...]:
    """Written for the form, by no model; the sides are drawn like all others."""
    found = []
    for pair in _practice_pairs():
        first, second = dice.sample([Reply.model_validate(reply) for reply in pair["replies"]], 2)
        found.append(Item(id=_new_id(dice), question=pair["question"], replies={"A": first, "B": second}))
    return tuple(found)
