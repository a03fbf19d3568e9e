"""Made-up raters, to see whether the statistics find what was put in. Their sheets say so, and so does every report on them.

No command makes them: only code that calls this module by name does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from services.trainer.evaluate.answers import replace_file
from services.trainer.evaluate.sheets import (
    DIMENSIONS,
    Dimension,
    Guess,
    Key,
    KeyItem,
    Rating,
    Sheet,
    SheetError,
    SideRating,
    content_sha256,
)


@dataclass(frozen=True)
class Raters:
    """What the made-up raters see and how; standard deviations and effects in points of the scale.

    `effect`: added to the adapter's answers. `agreement`: share of a scenario's quality that all see alike; the rest each
    makes up. `guessing`: how often the arm is guessed, and `knowing` how often such a guess is right.
    """

    effect: Mapping[Dimension, float] = field(default_factory=dict)
    base: float = 3.0
    quality_sd: float = 0.7
    bias_sd: float = 0.3
    noise_sd: float = 0.4
    agreement: float = 1.0
    harm: Mapping[str, float] = field(default_factory=lambda: {"base": 0.02, "adapter": 0.02})
    guessing: float = 0.4
    knowing: float = 0.5


def simulate_sheets(key: Key, raters: Raters, seed: int, missing: Collection[str] = ()) -> list[Sheet]:
    """A locked sheet of every rater of the key but those in `missing`; the same for the same arguments."""
    names = list(DIMENSIONS)
    dice = np.random.default_rng(seed)
    scenarios = sorted({item.scenario for part in key.raters.values() for item in part.items})
    shared = {scenario: dice.normal(0, raters.quality_sd, len(names)) for scenario in scenarios}
    found = []
    for rater, part in sorted(key.raters.items()):
        own = np.random.default_rng([seed, *rater.encode()])
        bias = own.normal(0, raters.bias_sd, len(names))
        alone = {scenario: own.normal(0, raters.quality_sd, len(names)) for scenario in scenarios}
        seen = {s: raters.agreement * shared[s] + (1 - raters.agreement) * alone[s] + bias for s in scenarios}
        ratings = tuple(_rate(item, seen[item.scenario], raters, own) for item in part.items)
        if rater not in missing:
            found.append(make_sheet(key, rater, ratings, simulated=True))
    return found


def write_simulated_sheets(key: Path, folder: Path, raters: Raters, seed: int) -> list[Path]:
    """The sheets of every rater of the key in this file, named so that nobody takes them for real. Raises `SheetError`."""
    try:
        opened = Key.model_validate_json(key.read_bytes())
    except (OSError, ValidationError) as error:
        raise SheetError(f"{key} is no key ({error}): give the one that `blind` wrote") from error
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for sheet in simulate_sheets(opened, raters, seed):
        written.append(folder / f"simulated-{sheet.rater}.json")
        replace_file(written[-1], sheet.model_dump_json(indent=1).encode() + b"\n")
    return written


def make_sheet(key: Key, rater: str, ratings: tuple[Rating, ...], *, simulated: bool, locked: bool = True) -> Sheet:
    """A sheet with its hash."""
    content = {
        "study": key.study,
        "rater": rater,
        "packet_sha256": key.raters[rater].packet_sha256,
        "locked": locked,
        "simulated": simulated,
        "ratings": ratings,
    }
    whole = Sheet.model_validate({**content, "sha256": ""})
    return whole.model_copy(update={"sha256": content_sha256(whole, without=("sha256",))})


def _rate(item: KeyItem, seen: Any, raters: Raters, dice: np.random.Generator) -> Rating:
    sides = {}
    for side in ("A", "B"):
        arm = item.arm("A" if side == "A" else "B")
        values = {}
        for place, name in enumerate(DIMENSIONS):
            effect = raters.effect.get(name, 0.0) if arm == "adapter" else 0.0
            felt = raters.base + seen[place] + effect + dice.normal(0, raters.noise_sd)
            values[name] = int(np.clip(np.rint(felt), 1, 5))
        sides[side] = SideRating(**values, harm=bool(dice.random() < raters.harm[arm]))
    guess: Guess = "unsure"
    if dice.random() < raters.guessing:
        is_right = dice.random() < raters.knowing
        guess = "A" if (item.A == "adapter") == is_right else "B"
    return Rating(item=item.id, A=sides["A"], B=sides["B"], guess=guess)
