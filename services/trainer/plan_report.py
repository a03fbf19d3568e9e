"""A plan as a page for people, as one line, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from services.trainer.memory import GB, PARTS
from services.trainer.plan_advice import Change

if TYPE_CHECKING:
    from services.trainer.plan import Plan

_MEANING = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer: two moments",
    "activations": "activations kept for the backward pass",
    "loss": "logits and the head's gradient",
    "transient": "transient",
}


def plan_text(plan: Plan) -> str:
    """A table and what follows from it."""
    parts = [f"  {_MEANING[name]:<42}{_gb(plan.memory.parts[name])}" for name in PARTS]
    other = (
        "CUDA, kernels, fragments (a margin)" if plan.budget.kind == "cuda" else "Python, torch, fragments (a margin)"
    )
    lines = [
        f"{plan.config.method} on {plan.config.base}, {plan.devices} x {plan.budget.name}",
        f"trainable parameters: {plan.trainable:,} of {plan.parameters:,} ({100 * plan.trainable / plan.parameters:.4f} %)",
        f"gradient checkpointing: {'on' if plan.gradient_checkpointing else 'off'}"
        + (" (auto)" if plan.config.gradient_checkpointing == "auto" else ""),
        f"micro-batch: {plan.micro_batch_tokens:,} tokens, {plan.config.gradient_accumulation} of them a step on each device",
        "",
        f"memory on one device, GB, at the peak ({_moment(plan.memory.moment)})",
        *parts,
        f"  {other:<42}{_gb(plan.overhead)}",
        f"  {'needed':<42}{_gb(plan.needed)}",
        f"  {'free':<42}{_gb(plan.budget.free)}  of {plan.budget.total / GB:,.1f}",
        "",
        *_work_lines(plan),
        *_disk_lines(plan),
        "",
        plan.advice,
    ]
    return "\n".join(lines)


def advice_line(plan: Plan) -> str:
    """One line: whether it fits; if not, what is lacking and the cheapest changes that help."""
    short = f"needs {plan.needed / GB:.1f} GB, {plan.budget.free / GB:.1f} GB are free on {plan.budget.name}"
    if plan.fits:
        return f"fits: {short}"
    remedy = plan.remedy
    if remedy is None or not remedy.changes:
        return f"does not fit: {short}; nothing that this trainer can change makes it smaller: take a larger device"
    settings = " ".join(f"--set {name}={_plain(value)}" for name, value in remedy.settings.items())
    costs = "; ".join(dict.fromkeys(change.cost for change in remedy.changes))
    if remedy.fits:
        return f"does not fit: {short}. {settings} takes {remedy.peak / GB:.1f} GB ({costs})"
    return (
        f"does not fit: {short}. At the least, {settings} takes {remedy.peak / GB:.1f} GB: take a device with more memory, "
        "end what else uses this one, or train a smaller base"
    )


def plan_json(plan: Plan) -> dict[str, Any]:
    """Bytes, seconds and counts; null for what is not known."""
    work, rate, remedy = plan.work, plan.rate, plan.remedy
    return {
        "fits": plan.fits,
        "advice": plan.advice,
        "method": plan.config.method,
        "parameters": plan.parameters,
        "trainable_parameters": plan.trainable,
        "gradient_checkpointing": plan.gradient_checkpointing,
        "devices": plan.devices,
        "device": {
            "kind": plan.budget.kind,
            "name": plan.budget.name,
            "free": plan.budget.free,
            "total": plan.budget.total,
        },
        "micro_batch_tokens": plan.micro_batch_tokens,
        "memory": {**plan.memory.parts, "margin": plan.overhead, "needed": plan.needed, "moment": plan.memory.moment},
        "work": None if work is None else vars(work),
        "tokens_per_s": None if rate is None else rate.tokens_per_s,
        "tokens_per_s_from": None if rate is None else rate.source,
        "seconds": plan.seconds,
        "disk": {"needed": plan.disk_needed, "free": plan.disk_free},
        "changes": None if remedy is None else [_change(change) for change in remedy.changes],
        "changed_needed": None if remedy is None else remedy.peak,
        "changed_fits": None if remedy is None else remedy.fits,
        "config": plan.config.as_dict(),
    }


def _work_lines(plan: Plan) -> list[str]:
    work = plan.work
    if work is None:
        return ["steps, tokens and time: unknown without data"]
    share = work.supervised / work.epoch_tokens
    lines = [
        f"data: {work.rows:,} rows of at most {work.longest:,} tokens, {work.epoch_tokens:,} in all, {share:.0%} learned",
        f"steps: {work.steps:,}, with {work.tokens:,} tokens",
    ]
    if plan.rate is None or plan.seconds is None:
        return [*lines, "time: unknown, nothing like this has run here; --probe measures it"]
    speed = f"{plan.rate.tokens_per_s:,.0f} tokens/s ({plan.rate.source})"
    return [*lines, f"time: about {_duration(plan.seconds)} at {speed}, evaluations and checkpoints not counted"]


def _disk_lines(plan: Plan) -> list[str]:
    needed, free = f"{plan.disk_needed / GB:,.2f} GB", f"{plan.disk_free / GB:,.1f} GB"
    line = f"disk: {needed} for checkpoints and result, {free} free for {plan.config.out}"
    return [line + (": free some, or set out to another disk" if plan.disk_needed > plan.disk_free else "")]


def _moment(name: str) -> str:
    return {"loss": "at the loss", "backward": "in the backward pass", "end": "at the end of the backward pass"}[name]


def _gb(size: int) -> str:
    return f"{size / GB:>8,.2f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _change(change: Change) -> Mapping[str, Any]:
    return {"settings": change.settings, "cost": change.cost}


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
