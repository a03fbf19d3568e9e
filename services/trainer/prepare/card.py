"""The data card as a page for people, and as lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.trainer.dataset import Card
from services.trainer.prepare.lengths import draw_histogram
from services.trainer.prepare.problems import KINDS


def card_page(card: Card) -> str:
    """Markdown."""
    parts = [
        "# Data card",
        f"Data `{card.data_sha256[:16]}`, made {card.created} with seed {card.seed}; rows of at most {card.max_length:,} tokens.",
        _table(("split", "rows", "tokens", "supervised"), _splits(card)),
        _table(("length in tokens", "least", "mean", "median", "90 %", "99 %", "most"), _lengths(card)),
        f"Rows by their tokens:\n\n```\n{draw_histogram(card.lengths['row'])}\n```",
        _table(("what", "how many"), _contents(card)),
        _table(("source", "lines", "sha256"), [(n, f"{f.rows:,}", f.sha256[:16]) for n, f in card.sources.items()]),
    ]
    if card.extra_columns:
        parts.append(_table(("column not used", "records"), [(n, f"{c:,}") for n, c in card.extra_columns.items()]))
    if card.dropped:
        parts.append(_table(("left out", "how many", "why"), _kinds(card.dropped)))
    if card.allowed:
        parts.append(_table(("let pass", "how many", "what"), _kinds(card.allowed)))
    parts.append(f"System prompt for rows without their own:\n\n> {card.system_prompt or '(none)'}")
    parts.append("Personal data are found by their form; names and places in running text are not found.")
    return "\n\n".join(parts) + "\n"


def card_lines(card: Card) -> str:
    """What `prepare` prints when it is done."""
    rows = [
        f"{split:<6}{rows:>8} rows {tokens:>12} tokens, {own} supervised" for split, rows, tokens, own in _splits(card)
    ]
    lengths = [
        f"{name:<10}least {least:>6}  median {median:>6}  90 % {p90:>6}  99 % {p99:>6}  most {most:>6}"
        for name, least, _, median, p90, p99, most in _lengths(card)
    ]
    contents = [f"{count:>8}  {name}" for name, count in _contents(card) if count != "0"]
    dropped = [f"{count:>8}  left out, {kind}: {why}" for kind, count, why in _kinds(card.dropped)]
    columns = [f"{count:>8,}  records with the unused column {name}" for name, count in card.extra_columns.items()]
    drawn = ["rows by their tokens:", draw_histogram(card.lengths["row"])]
    return "\n".join([*rows, "", *lengths, "", *drawn, "", *contents, *columns, *dropped])


def _splits(card: Card) -> list[tuple[str, str, str, str]]:
    return [(s, f"{f.rows:,}", f"{f.tokens or 0:,}", f"{f.supervised or 0:,}") for s, f in card.files.items()]


def _lengths(card: Card) -> list[tuple[str, ...]]:
    return [
        (name, f"{x.least:,}", f"{x.mean:,.0f}", f"{x.p50:,}", f"{x.p90:,}", f"{x.p99:,}", f"{x.most:,}")
        for name, x in card.lengths.items()
    ]


def _contents(card: Card) -> list[tuple[str, str]]:
    counts = {
        **{f"records as {form}": count for form, count in card.formats.items()},
        "conversations": card.dialogues,
        "groups that ask or answer the same, or nearly": card.groups,
        "of them with several conversations": card.near_duplicate_groups,
        "conversations in the largest group": card.largest_group,
        "rows without thinking (their empty thought is not learned)": card.rows_without_thinking,
        "rows with earlier turns": card.rows_with_history,
        "rows with tools": card.rows_with_tools,
        "texts cleaned (NFC, line ends, blanks around)": card.normalised,
    }
    return [(name, f"{count:,}") for name, count in counts.items()]


def _kinds(counts: Mapping[str, int]) -> list[tuple[str, str, str]]:
    return [(kind, f"{count:,}", KINDS[kind]) for kind, count in counts.items()]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
