"""A report for the terminal (the article's table: dimension, before, after, change) and as Markdown."""

from __future__ import annotations

import unicodedata
from typing import Any

from services.trainer.evaluate.report_words import LIMITS, SIMULATED, findings, interval, p_value, points, verdict
from services.trainer.evaluate.sheets import DIMENSIONS

HEAD = ("维度", "微调前 base", "微调后 adapter", "变化(分)", "95 % 区间", "p (Holm)", "胜/平/负", "Cliff δ", "α")
_RED, _BOLD, _PLAIN = "\x1b[1;31m", "\x1b[1m", "\x1b[0m"


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row a dimension, and the overall one."""
    parts = [(DIMENSIONS[name], report["dimensions"][name]) for name in DIMENSIONS]
    return [_row(label, part) for label, part in [*parts, ("总体 overall", report["overall"])]]


def terminal(report: dict[str, Any], colours: bool) -> str:
    """Verdict, table and what weakens it, aligned for a fixed-width font in which Chinese is two columns wide."""
    red, bold, plain = (_RED, _BOLD, _PLAIN) if colours else ("", "", "")
    table = [HEAD, *rows(report)]
    widths = [max(_width(row[column]) for row in table) for column in range(len(HEAD))]
    lines = [
        "  ".join(cell + " " * (w - _width(cell)) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    banner = [f"{red}{SIMULATED}{plain}", ""] if report["simulated"] else []
    return "\n".join(
        [*banner, f"{bold}{verdict(report)}{plain}", "", *lines, "", *(f"- {f}" for f in findings(report))]
    )


def markdown(report: dict[str, Any]) -> str:
    """report.md."""
    arms = report["run"]["arms"]
    banner = [f"> **{SIMULATED}**", ""] if report["simulated"] else []
    table = [HEAD, ("---",) * len(HEAD), *rows(report)]
    return "\n".join(
        [
            "# 双盲评估报告 Evaluation report",
            "",
            *banner,
            f"**{verdict(report)}**",
            "",
            f"- 基础模型 base:`{arms['base']}`;适配器 adapter:`{arms['adapter']}`",
            *(f"- {finding}" for finding in findings(report)),
            "",
            *("| " + " | ".join(row) + " |" for row in table),
            "",
            "## 局限 Limits",
            "",
            *(f"- {limit}" for limit in LIMITS),
            "",
            f"answers `{report['run']['answers_sha256']}` · study `{report['study']}` · key `{report['key_sha256']}`",
            "",
        ]
    )


def _row(label: str, part: dict[str, Any]) -> tuple[str, ...]:
    counts, agreement = part["scenarios"], part["alpha"]
    shown = (
        "—" if agreement["value"] is None else f"{agreement['value']:.2f}{'' if agreement['reliable'] else ' 不可靠'}"
    )
    return (
        label,
        f"{part['before']:.2f}",
        f"{part['after']:.2f}",
        points(part["change"]["mean"]),
        interval(part["change"]),
        p_value(part["p_holm"]) if "p_holm" in part else f"{p_value(part['p'])} (p)",
        f"{counts['win']}/{counts['tie']}/{counts['loss']}",
        f"{part['cliffs_delta']:+.2f}",
        shown,
    )


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)
