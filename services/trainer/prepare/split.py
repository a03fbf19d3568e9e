"""Which split a group of rows goes to: seeded, whole groups, and the same mix of lengths on every side."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from services.trainer.dataset import DatasetError, PreparedRow

_STRATA = 4


def split_rows(rows: Sequence[PreparedRow], shares: Mapping[str, float], seed: int) -> dict[str, list[PreparedRow]]:
    """Rows by split, in their own order; what no share takes is `train`.

    `shares` maps `val` and `test` to shares of the rows. Groups are dealt out within quarters of similar length. Raises
    `DatasetError` when a split that was asked for, or `train`, would be empty.
    """
    wanted = {split: share for split, share in shares.items() if share > 0}
    members: defaultdict[str, list[PreparedRow]] = defaultdict(list)
    for row in rows:
        members[row.group].append(row)
    if len(members) < 1 + len(wanted):
        raise DatasetError(
            f"{len(members)} groups of unlike questions and answers cannot fill train, {', '.join(wanted)}: give more data, "
            "raise --near if they are wrongly taken for the same, or say --val-share 0"
        )
    chosen = _deal(members, wanted, seed)
    splits: dict[str, list[PreparedRow]] = {"train": [], **{split: [] for split in wanted}}
    for row in rows:
        splits[chosen.get(row.group, "train")].append(row)
    if not splits["train"]:
        raise DatasetError(f"train would be empty: {len(members)} groups of questions are too few for these shares")
    return splits


def _deal(members: Mapping[str, Sequence[PreparedRow]], wanted: Mapping[str, float], seed: int) -> dict[str, str]:
    """Split of each group that does not stay in `train`."""
    by_length = sorted(members, key=lambda group: (max(row.tokens for row in members[group]), group))
    chosen: dict[str, str] = {}
    seen, taken = 0, dict.fromkeys(wanted, 0)
    for quarter in range(_STRATA):
        stratum = by_length[quarter * len(by_length) // _STRATA : (quarter + 1) * len(by_length) // _STRATA]
        random.Random(f"{seed}:{quarter}").shuffle(stratum)
        seen += sum(len(members[group]) for group in stratum)
        for split, share in wanted.items():
            for group in stratum:
                # Large shares of few groups: every split that is still empty, and train, must get one.
                empty = 1 + sum(other != split and not taken[other] for other in wanted)
                if len(members) - len(chosen) <= empty:
                    break
                size = len(members[group])
                # Against all that was seen: what an earlier quarter left short, or took too much, this one makes up for.
                if group not in chosen and taken[split] + size / 2 <= share * seen:
                    chosen[group] = split
                    taken[split] += size
    for split in wanted:
        if not taken[split]:  # a small data set: the smallest group, so that there is something to measure on
            left = [group for group in by_length if group not in chosen]
            chosen[min(left, key=lambda group: len(members[group]))] = split
    return chosen
