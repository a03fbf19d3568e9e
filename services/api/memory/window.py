"""Which past turns go into the prompt: whole ones, the newest that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """`ids`: system prompt, kept turns, new messages. `dropped`: oldest turns that are not in it."""

    ids: list[int]
    kept: int
    dropped: int
    fits: bool  # False: it is longer than the budget although nothing more can be dropped


def choose_window(
    system: Sequence[int],
    turns: Sequence[Sequence[int]],
    new: Sequence[int],
    budget: int,
    glued: Sequence[bool] = (),
) -> Window:
    """The longest run of newest turns that fits between system prompt and new messages.

    `turns`: ids of each past turn, its messages and its answer, oldest first. `budget`: most tokens of all together.
    `glued`: for each turn, and last for the new messages, whether it answers tool calls of the turn before, which then
    stays or goes with it; empty: none does.
    """
    together = list(glued) or [False] * (len(turns) + 1)
    if len(together) != len(turns) + 1:
        raise ValueError("glued has an entry for each turn and one for the new messages")
    used = len(system) + len(new)
    first, pending = len(turns), 0
    for n in range(len(turns) - 1, -1, -1):
        must_stay = all(together[n + 1 :])  # the new messages hang on it
        pending += len(turns[n])
        if used + pending > budget and not must_stay:
            break
        if must_stay or not together[n]:  # the run from n on is whole
            used, pending, first = used + pending, 0, n
    ids = list(system)
    for turn in turns[first:]:
        ids += turn
    ids += new
    return Window(ids, len(turns) - first, first, len(ids) <= budget)
