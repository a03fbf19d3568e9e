"""What a report says in sentences: the verdict first, then what weakens it. Chinese, for clinicians, with the English terms."""

from __future__ import annotations

from typing import Any

from services.trainer.evaluate.sheets import DIMENSIONS

SIMULATED = "模拟数据 SIMULATED:评分由程序生成,没有任何医生参与,不构成任何证据。"
LIMITS = (
    "场景由系统开发者用中文编写,未经医师审定,不是任何真实患者的抽样。",
    "两组回答都经过同一安全策略(guard);换用其他策略,结果可能不同。",
    "医师在表格中的偏好不等于患者结局,本研究没有测量任何结局。",
    "重采样区间(two-way bootstrap)把场景与评分者都视为样本,偏宽、偏保守;场景很少时仍不可靠。",
    "p 值只把场景视为样本,评分者视为固定:换一批医师,显著的结果也可能消失;区间包含 0 时应以区间为准。",
    "自动指标(automatic figures)是文字模式匹配,未询问任何评分者。",
)


def points(value: float | None) -> str:
    """A signed change in points."""
    return "—" if value is None else f"{value:+.2f}"


def interval(change: dict[str, Any]) -> str:
    """The 95 % interval, or that there is none."""
    return "无区间" if change["low"] is None else f"{change['low']:+.2f} 至 {change['high']:+.2f}"


def p_value(p: float) -> str:
    """p, never as zero."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def verdict(report: dict[str, Any]) -> str:
    """The first sentence: better, worse, or not shown; overall."""
    change = report["overall"]["change"]
    made_up = "[模拟数据 SIMULATED] " if report["simulated"] else ""
    told = f"总体变化 {points(change['mean'])} 分(1–5 分制,95 % 区间 {interval(change)})"
    if change["low"] is None:
        return f"{made_up}数据太少,不能下结论。{told}。"
    if change["low"] > 0:
        return f"{made_up}适配器(adapter)的评分高于基础模型(base)。{told}。"
    if change["high"] < 0:
        return f"{made_up}适配器(adapter)的评分低于基础模型(base)。{told}。"
    return f"{made_up}没有显示出差别——这不等于证明两者相同。{told}。"


def findings(report: dict[str, Any]) -> list[str]:
    """What a reader has to know beside the verdict, most serious first."""
    return [
        *_harm(report),
        *_dimensions(report),
        *_agreement(report),
        *_blinding(report),
        *_missing(report),
        *_power(report),
    ]


def _harm(report: dict[str, Any]) -> list[str]:
    harm = report["harm"]
    told = f"严重危害标记(critical harm):适配器 {harm['adapter']} 次,基础模型 {harm['base']} 次,各 {harm['ratings']} 次评分。"
    return [("危险:适配器的标记更多。" if harm["adapter"] > harm["base"] else "") + told]


def _dimensions(report: dict[str, Any]) -> list[str]:
    shown = [name for name in DIMENSIONS if report["dimensions"][name]["p_holm"] < 0.05]
    if not shown:
        return ["四个维度经 Holm 校正后,均无显著变化(p ≥ 0.05)。"]
    parts = [f"{DIMENSIONS[n]} {points(report['dimensions'][n]['change']['mean'])} 分" for n in shown]
    return [f"经 Holm 校正后变化显著(p < 0.05)的维度:{'、'.join(parts)}。"]


def _agreement(report: dict[str, Any]) -> list[str]:
    weak = [name for name in DIMENSIONS if report["dimensions"][name]["alpha"]["reliable"] is False]
    none = [name for name in DIMENSIONS if report["dimensions"][name]["alpha"]["value"] is None]
    found = []
    if weak:
        parts = [f"{DIMENSIONS[n]} {report['dimensions'][n]['alpha']['value']:.2f}" for n in weak]
        found.append(
            f"评分者一致性不足(Krippendorff α < 0.667,unreliable):{'、'.join(parts)}。这些维度的数字都应谨慎看待。"
        )
    if none:
        found.append(f"无法计算评分者一致性:{'、'.join(DIMENSIONS[n] for n in none)}。")
    return found


def _blinding(report: dict[str, Any]) -> list[str]:
    guessed = report["blinding"]["of_guesses"]
    if guessed["share"] is None:
        return ["没有评分者猜测哪份回答来自适配器。"]
    told = f"猜测来源:猜对 {100 * guessed['share']:.0f} %(95 % 区间 {100 * guessed['low']:.0f}–{100 * guessed['high']:.0f} %)"
    if guessed["low"] > 0.5:
        return [f"{told},高于机会水平:盲法可能已失效,评分可能反映对来源的看法。"]
    return [f"{told},未见明显高于机会水平。"]


def _missing(report: dict[str, Any]) -> list[str]:
    design = report["design"]
    found = []
    if design["missing_raters"]:
        found.append(f"缺少评分表(missing sheets):{'、'.join(design['missing_raters'])};没有补填。")
    for rater, count in design["items_not_rated"].items():
        found.append(f"{rater} 有 {count} 题未评;没有补填。")
    left = design["scenarios_of_the_run"] - len(design["scenarios"])
    if left:
        found.append(f"{left} 个场景没有任何评分。")
    return found


def _power(report: dict[str, Any]) -> list[str]:
    power = report["power"]
    told = f"{power['scenarios']} 个场景、{power['raters']} 名评分者"
    dimensions = power["dimensions"].values()
    if any(part["smallest_p"] > part["level"] for part in dimensions):
        least = next(iter(dimensions))
        return [
            f"{told}:可能的最小 p 值为 {least['smallest_p']:.3g},高于校正后的界限 {least['level']:.4g};"
            "场景太少,任何差别都无法达到显著。"
        ]
    found = [part["detectable"] for part in dimensions if part["detectable"] is not None]
    if not found:
        return [f"{told}:评分没有变异,无法估计检验效能(power)。"]
    return [
        f"{told}:单个维度约 {min(found):.2f}–{max(found):.2f} 分以上的变化,才有 80 % 的机会被显示出来(power,近似)。"
    ]
