"""What the build writes down about a model: `measured.json`, and a README whose numbers are the model's own."""

from __future__ import annotations

from pathlib import Path
from string import Template

from pydantic import BaseModel

from services.trainer.demo.judge import GroupResult, table

_README = Path(__file__).resolve().parent / "readme_template.md"


class Training(BaseModel):
    """How a model came about; written beside it."""

    recipe: dict[str, int | float]
    dialogues: int
    chinese: int
    out_of_scope: int
    rows_an_epoch: int
    parameters: int
    vocabulary: int
    loss: float
    device: str
    training_s: float


class Measured(BaseModel):
    """The content of `measured.json`."""

    training: Training
    results: list[GroupResult] = []


def write_readme(report: Measured) -> str:
    """The README of the model directory, in Markdown."""
    t = report.training
    template = Template(_README.read_text(encoding="utf-8"))
    return template.substitute(
        t.model_dump(),
        parameters=f"{t.parameters:,}",
        megabytes=f"{t.parameters * 2 / 1e6:.1f}",
        epochs=t.recipe["epochs"],
        seed=t.recipe["seed"],
        minutes=f"{t.training_s / 60:.1f}",
        table=table(report.results) if report.results else "Not measured: this is a provisional model.",
    )
