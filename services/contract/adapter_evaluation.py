"""What a manifest says of the evaluation that let its version through."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class EvaluationRecord(BaseModel):
    """Hashes of the report and of the answers that were rated. `simulated`: by made-up raters, which proves nothing."""

    model_config = ConfigDict(frozen=True)
    report_sha256: str
    answers_sha256: str
    simulated: bool
