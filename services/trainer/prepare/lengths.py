"""How long the rows are, for the card and for people."""

from __future__ import annotations

from collections.abc import Sequence

from services.trainer.dataset import LengthCard

_BINS = 12
_BAR = 40  # characters of the longest bar
_STEPS = (1, 2, 5)


def length_card(lengths: Sequence[int]) -> LengthCard:
    """`lengths` in tokens, at least one. Percentiles are the smallest length that so many rows do not exceed."""
    ordered = sorted(lengths)
    width = _bin_width(ordered[-1])
    histogram: dict[int, int] = {}
    for length in ordered:
        edge = -(-length // width) * width
        histogram[edge] = histogram.get(edge, 0) + 1
    return LengthCard(
        least=ordered[0],
        mean=round(sum(ordered) / len(ordered), 1),
        p50=_percentile(ordered, 50),
        p90=_percentile(ordered, 90),
        p99=_percentile(ordered, 99),
        most=ordered[-1],
        histogram=histogram,
    )


def draw_histogram(card: LengthCard) -> str:
    """A line a bin: the lengths in it, how many rows, a bar."""
    width = _bin_width(card.most)
    tallest = max(card.histogram.values())
    lines = []
    for edge in range(min(card.histogram), max(card.histogram) + 1, width):
        count = card.histogram.get(edge, 0)
        bar = "█" * -(-count * _BAR // tallest)
        lines.append(f"{max(edge - width + 1, 0):>7,} -{edge:>7,} {count:>8,}  {bar}".rstrip())
    return "\n".join(lines)


def _percentile(ordered: Sequence[int], percent: int) -> int:
    return ordered[-(-len(ordered) * percent // 100) - 1]


def _bin_width(most: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that needs no more than the given number of bins."""
    scale = 1
    while True:
        for step in _STEPS:
            if most <= step * scale * _BINS:
                return step * scale
        scale *= 10
