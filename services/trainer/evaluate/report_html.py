"""report.html: one file without a script or a foreign address, for a reader who is a clinician. All text of models is escaped."""

from __future__ import annotations

from html import escape
from typing import Any

from services.trainer.evaluate.report_table import HEAD, rows
from services.trainer.evaluate.report_words import LIMITS, SIMULATED, findings, verdict
from services.trainer.evaluate.sheets import DIMENSIONS

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--paper:#fff;--panel:#f4f6f9;--line:#d7dde5;
  --good:#0b6e4f;--bad:#b3261e;--mark:#1f5fa8}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b5;--paper:#12161c;--panel:#1b212a;
  --line:#333d4a;--good:#5cc9a0;--bad:#ff8a80;--mark:#7db4f0}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.65 system-ui,"PingFang SC","Microsoft YaHei",
  "Noto Sans CJK SC",sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
.simulated{position:sticky;top:0;z-index:1;background:#b3261e;color:#fff;font-weight:700;font-size:1.1rem;
  padding:.8rem 1rem;text-align:center}
.verdict{background:var(--panel);border-left:.4rem solid var(--mark);padding:1rem;font-size:1.15rem;font-weight:600;
  margin:1rem 0}
.verdict.better{border-color:var(--good)}.verdict.worse{border-color:var(--bad)}
.verdict.neutral{border-color:var(--soft);color:var(--soft)}
.soft{color:var(--soft);font-size:.9rem;overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{padding:.45rem .4rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}.scores tbody tr:last-child{font-weight:600}
svg{width:100%;height:auto;display:block;background:var(--panel);border-radius:.4rem}
svg text{fill:var(--ink);font-size:13px}svg .axis{stroke:var(--line)}svg .zero{stroke:var(--soft);stroke-dasharray:4 3}
svg .mark{stroke:var(--mark);fill:var(--mark);stroke-width:2.5}svg .dot{fill:var(--soft);opacity:.45}
  svg .tick{fill:var(--soft);font-size:12px}
article{border:1px solid var(--line);border-left:.4rem solid var(--bad);border-radius:.4rem;padding:.8rem 1rem;
  margin:1rem 0}
article h3{margin:0 0 .4rem;font-size:1rem}pre{white-space:pre-wrap;overflow-wrap:anywhere;font:inherit;
  background:var(--panel);padding:.6rem .8rem;margin:.3rem 0 .8rem}
@media print{.simulated{position:static}body{font-size:12px}}
"""
_ARMS = {"base": "基础模型 base", "adapter": "适配器 adapter"}
_AUTOMATIC = ("format_valid", "expected_coverage", "forbidden_said", "red_flag_recall", "emergency_recall", "blocked")


def html(report: dict[str, Any]) -> str:
    """The whole page."""
    banner = f'<div class="simulated" role="alert">{escape(SIMULATED)}</div>' if report["simulated"] else ""
    sections = (_summary, _scores, _changes, _by_scenario, _harm, _agreement, _automatic, _limits)
    body = "\n".join(section(report) for section in sections)
    title = "双盲评估报告" + (" [模拟数据 SIMULATED]" if report["simulated"] else "")
    return (
        f'<!DOCTYPE html>\n<html lang="zh-CN"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{_STYLE}</style></head><body>{banner}<main>\n{body}\n</main></body></html>\n"
    )


def _summary(report: dict[str, Any]) -> str:
    design, arms = report["design"], report["run"]["arms"]
    change = report["overall"]["change"]
    more_harm = report["harm"]["adapter"] > report["harm"]["base"]
    is_worse = (change["high"] or 0) < 0 or more_harm
    is_better = (change["low"] or 0) > 0 and not is_worse
    who = "个由程序模拟的评分者" if report["simulated"] else "名评分者"
    kind = "neutral" if report["simulated"] else "better" if is_better else "worse" if is_worse else ""
    return (
        f'<h1>双盲评估报告</h1><p class="verdict {kind}">{escape(verdict(report))}</p>{_list(findings(report))}'
        f"<h2>比较了什么</h2><p>{len(design['raters'])} {who}对 {len(design['scenarios'])} 个临床场景的两份回答评分"
        f"(1–5 分),不知道哪一份来自哪个模型。共 {design['ratings']} 次成对评分;另有 {design['repeats']} 次重复,"
        "只用于检查评分者自身的一致性。</p>"
        f'<p class="soft">基础模型 base:{escape(arms["base"])}<br>适配器 adapter:{escape(arms["adapter"])}</p>'
    )


def _scores(report: dict[str, Any]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in HEAD)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows(report))
    return (
        f'<h2>评分 Scores</h2><div class="wide"><table class="scores"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        '<p class="soft">变化 = 适配器 − 基础模型,单位是分,不是百分比。p:Wilcoxon 符号秩检验,四个维度经 Holm 校正;'
        "胜/平/负按场景计。Cliff δ 从 −1 到 1。α:Krippendorff,低于 0.667 为不可靠。</p>"
    )


def _changes(report: dict[str, Any]) -> str:
    """Mean change of each dimension with its interval; the shaded edge is the gate's margin of -0.2."""
    parts = [(DIMENSIONS[n], report["dimensions"][n]["change"]) for n in DIMENSIONS] + [
        ("总体", report["overall"]["change"])
    ]
    ends = [v for _, c in parts for v in (c["mean"], c["low"], c["high"]) if v is not None]
    most = max(0.5, *(abs(v) for v in ends)) * 1.1
    drawn = [_axis(most, 40 * len(parts) + 10)]
    for place, (label, change) in enumerate(parts):
        y = 30 + 40 * place
        drawn.append(f'<text x="10" y="{y + 5}">{escape(label)}</text>')
        if change["low"] is not None:
            drawn.append(
                f'<line class="mark" x1="{_x(change["low"], most)}" x2="{_x(change["high"], most)}" y1="{y}" y2="{y}"/>'
            )
        drawn.append(f'<circle class="mark" cx="{_x(change["mean"], most)}" cy="{y}" r="5"/>')
    return (
        "<h2>变化及 95 % 区间</h2>" + _svg("".join(drawn), 40 * len(parts) + 40, "各维度的变化及其 95 % 区间")
        + '<p class="soft">圆点为平均变化,横线为 95 % 区间;虚线为 0(无变化),右侧为适配器更好。</p>'
    )  # fmt: skip


def _by_scenario(report: dict[str, Any]) -> str:
    """Every scenario's change as a dot: whether the mean comes from many or from a few."""
    parts = [(DIMENSIONS[n], report["dimensions"][n]["differences"]) for n in DIMENSIONS]
    most = max(0.5, *(abs(v) for _, values in parts for v in values)) * 1.1
    drawn = [_axis(most, 50 * len(parts) + 10)]
    for place, (label, values) in enumerate(parts):
        y = 35 + 50 * place
        drawn.append(f'<text x="10" y="{y + 5}">{escape(label)}</text>')
        for number, value in enumerate(sorted(values)):
            drawn.append(f'<circle class="dot" cx="{_x(value, most)}" cy="{y + 5 * (number % 5 - 2)}" r="4.5"/>')
    return "<h2>每个场景的变化</h2>" + _svg("".join(drawn), 50 * len(parts) + 40, "每个场景在各维度的变化")


def _x(value: float, most: float) -> str:
    return f"{470 + 290 * value / most:.1f}"


def _axis(most: float, bottom: int) -> str:
    step = next(s for s in (0.1, 0.2, 0.5, 1.0, 2.0) if most / s <= 5)
    ticks = [n * step for n in range(-int(most / step), int(most / step) + 1)]
    return "".join(
        f'<line class="{"axis" if tick else "zero"}" x1="{_x(tick, most)}" x2="{_x(tick, most)}" y1="10" y2="{bottom}"/>'
        f'<text class="tick" text-anchor="middle" x="{_x(tick, most)}" y="{bottom + 18}">{tick:+.1f}</text>'
        for tick in ticks
    )


def _svg(inside: str, height: int, told: str) -> str:
    return f'<svg viewBox="0 0 780 {height}" role="img" aria-label="{escape(told)}">{inside}</svg>'


def _harm(report: dict[str, Any]) -> str:
    cases = report["harm_cases"]
    if not cases:
        return "<h2>严重危害 Critical harm</h2><p>没有回答被标记。</p>"
    shown = "".join(
        f"<article><h3>{escape(_ARMS[case['arm']])} · 场景 {escape(case['scenario'])} · "
        f"{len(case['raters'])}/{case['of']} 名评分者标记({escape('、'.join(case['raters']))})</h3>"
        f"<strong>问题</strong><pre>{escape(case['question'])}</pre><strong>回答</strong><pre>{escape(case['answer'])}</pre>"
        f"<details><summary>思考过程</summary><pre>{escape(case['reasoning'])}</pre></details>"
        + "".join(f"<strong>评分者意见</strong><pre>{escape(comment)}</pre>" for comment in case["comments"])
        + "</article>"
        for case in sorted(cases, key=lambda case: (case["arm"] != "adapter", -len(case["raters"])))
    )
    return f"<h2>严重危害 Critical harm:{len(cases)} 份回答被标记</h2>{shown}"


def _agreement(report: dict[str, Any]) -> str:
    rows_ = "".join(
        f"<tr><td>{escape(label)}</td><td>{_number(part['alpha']['value'])}</td>"
        f"<td>{_number(part['alpha']['low'])} 至 {_number(part['alpha']['high'])}</td>"
        f"<td>{_number(part['icc']['single'])}</td><td>{_number(part['icc']['average'])}</td></tr>"
        for label, part in [
            *((DIMENSIONS[n], report["dimensions"][n]) for n in DIMENSIONS),
            ("总体", report["overall"]),
        ]
    )
    own, guess = report["intra_rater"]["all"], report["blinding"]
    told = "没有重复题。" if own["same"] is None else (
        f"重复题:{100 * own['same']:.0f} % 的评分相同,"
        f"{100 * own['within_one']:.0f} % 相差不超过 1 分(共 {own['ratings']} 个评分)。"
    )  # fmt: skip
    return (
        '<h2>评分者一致性 Agreement</h2><div class="wide"><table class="scores"><thead><tr><th>维度</th><th>Krippendorff α</th>'
        f"<th>95 % 区间</th><th>ICC(2,1)</th><th>ICC(2,k)</th></tr></thead><tbody>{rows_}</tbody></table></div><p>{told}</p>"
        f"<p>猜测哪份来自适配器:猜对 {guess['correct']},不确定 {guess['unsure']},猜错 {guess['wrong']}。"
        "区间按各次猜测互相独立计算,同一评分者的猜测并不独立,真实区间更宽。</p>"
    )


def _automatic(report: dict[str, Any]) -> str:
    arms = report["automatic"]
    body = "".join(
        f"<tr><td>{name}</td><td>{_percent(arms['base'][name])}</td><td>{_percent(arms['adapter'][name])}</td></tr>"
        for name in _AUTOMATIC
    )
    judge = report["judge"]
    told = "" if judge is None else (
        f"<p>模型评判(judge,{escape(str(judge['judge']))}):适配器胜 {judge['adapter']},基础模型胜 {judge['base']},"
        f"平 {judge['tie']};与评分者一致 {judge['same_as_raters']}/{judge['compared']}。仅供参考。</p>"
    )  # fmt: skip
    return (
        '<h2>自动指标 Automatic figures</h2><div class="wide"><table><thead><tr><th>指标</th><th>base</th><th>adapter</th>'
        f"</tr></thead><tbody>{body}</tbody></table></div>{told}"
    )


def _limits(report: dict[str, Any]) -> str:
    return (
        f"<h2>局限 Limits</h2>{_list(LIMITS)}<p class=soft>answers {report['run']['answers_sha256']}<br>"
        f"study {report['study']} · key {report['key_sha256']}</p>"
    )


def _list(lines: Any) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:.1f} %"
