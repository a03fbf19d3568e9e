"""Which rows are trained on together, and when: the whole run's micro-batches, decided before its first step.

A pack is rows end to end in one sequence, so no token is padding. Everything follows from the rows' lengths, the settings and
the seed, so that every process knows its share without asking, and a resumed run goes on where it stopped by counting.
Needs no torch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

Pack = tuple[int, ...]  # indices of rows; none: a micro-batch that only keeps this process in step with the others

# Packs that are open at one time. With all of them open, packing would put the same rows together in every epoch.
_OPEN_PACKS = 64


@dataclass(frozen=True)
class Schedule:
    """The micro-batches of all processes in the order of training: `accumulation` x `processes` of them are one step.

    Within a step they go round the processes: number i is process i % `processes`'s.
    """

    packs: tuple[Pack, ...]
    accumulation: int
    processes: int
    epoch_ends: tuple[int, ...]
    last_share: float = 1.0  # of the rows that the last epoch comes to

    @property
    def steps(self) -> int:
        return len(self.packs) // (self.accumulation * self.processes)

    def of_process(self, process: int) -> tuple[Pack, ...]:
        return self.packs[process :: self.processes]

    def epoch_at(self, step: int) -> float:
        """Passes over the data after this many steps."""
        begin = 0
        for epoch, end in enumerate(self.epoch_ends[:-1]):
            if step <= end:
                return epoch + (step - begin) / (end - begin)
            begin = end
        return len(self.epoch_ends) - 1 + self.last_share * (step - begin) / (self.epoch_ends[-1] - begin)


def make_schedule(
    lengths: Sequence[int],
    *,
    batch_tokens: int | None,
    batch_rows: int,
    accumulation: int,
    processes: int,
    epochs: float,
    max_steps: int | None,
    seed: int,
) -> Schedule:
    """Packs of at most `batch_tokens` tokens, or of `batch_rows` rows where that is `None`; new ones in every epoch.

    An epoch is a whole number of steps, each with nearly the same number of packs; the rest of a step is empty packs. A
    fraction of an epoch is that share of its packs. Raises `ValueError` without rows, or for a row that fits no pack.
    """
    if not lengths:
        raise ValueError("there are no rows to train on")
    packs: list[Pack] = []
    ends: list[int] = []
    per_step = accumulation * processes
    share = 1.0
    for epoch in range(math.ceil(epochs)):
        rng = random.Random(f"{seed} {epoch}")
        order = rng.sample(range(len(lengths)), len(lengths))
        of_epoch = pack(lengths, order, batch_tokens) if batch_tokens is not None else _in_rows(order, batch_rows)
        rng.shuffle(of_epoch)
        share = min(1.0, epochs - epoch)
        of_epoch = of_epoch[: max(1, round(share * len(of_epoch)))]
        packs += _spread(of_epoch, per_step)
        ends.append(len(packs) // per_step)
        if max_steps is not None and ends[-1] >= max_steps:
            begin = ends[-2] if epoch else 0
            share *= (max_steps - begin) / (ends[-1] - begin)
            ends[-1] = max_steps
            break
    return Schedule(tuple(packs[: ends[-1] * per_step]), accumulation, processes, tuple(ends), share)


def evaluation_packs(lengths: Sequence[int], batch_tokens: int | None, batch_rows: int, processes: int) -> list[Pack]:
    """Packs of all rows, as many for each process; they go round the processes."""
    order = range(len(lengths))
    packs = pack(lengths, order, batch_tokens) if batch_tokens is not None else _in_rows(order, batch_rows)
    return packs + [()] * (-len(packs) % processes)


def pack(lengths: Sequence[int], order: Sequence[int], batch_tokens: int) -> list[Pack]:
    """Puts rows, in this order, where they leave the least room: best fit over a bounded number of open packs."""
    done: list[Pack] = []
    open_packs: list[tuple[int, list[int]]] = []  # room left, rows
    for row in order:
        length = lengths[row]
        if length > batch_tokens:
            raise ValueError(f"row {row} has {length} tokens and a pack holds {batch_tokens}")
        fitting = [i for i, (room, _) in enumerate(open_packs) if room >= length]
        if fitting:
            best = min(fitting, key=lambda i: open_packs[i][0])
            room, rows = open_packs[best]
            open_packs[best] = (room - length, [*rows, row])
            continue
        if len(open_packs) == _OPEN_PACKS:
            fullest = min(range(_OPEN_PACKS), key=lambda i: open_packs[i][0])
            done.append(tuple(open_packs.pop(fullest)[1]))
        open_packs.append((batch_tokens - length, [row]))
    return done + [tuple(rows) for _, rows in open_packs]


def _in_rows(order: Sequence[int], batch_rows: int) -> list[Pack]:
    return [tuple(order[i : i + batch_rows]) for i in range(0, len(order), batch_rows)]


def _spread(packs: Sequence[Pack], per_step: int) -> list[Pack]:
    """Packs over as few steps as hold them, evenly; what a step lacks are empty packs at its beginning."""
    steps = math.ceil(len(packs) / per_step)
    spread: list[Pack] = []
    for step in range(steps):
        chosen = packs[step * len(packs) // steps : (step + 1) * len(packs) // steps]
        spread += [()] * (per_step - len(chosen)) + list(chosen)
    return spread
