"""What is measured: the modes, and the recipes that are measured in each. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

BATCH, ACCUMULATION = 4, 8  # the article's, for its recipe and for TRL


@dataclass(frozen=True)
class Mode:
    """One comparison. `preset` none: a full fine-tune. `lengths`: every row the longest, or the mix."""

    name: str
    preset: Literal["seed", "default"] | None
    lengths: Literal["longest", "mix"]
    aim: str

    @property
    def measures_memory(self) -> bool:
        """Rows of full length, and checkpointing in the recipes that have it; else speed, without."""
        return self.lengths == "longest"

    @property
    def accumulation(self) -> int:
        """Of our recipe, with 8192 tokens a micro-batch; about as many tokens a step as the article's 32 rows have."""
        return 1 if self.preset is None and self.measures_memory else 4

    def settings(self) -> dict[str, Any]:
        """Of our recipe, over `TrainConfig`'s defaults."""
        method = {"method": "full"} if self.preset is None else {"method": "lora", "preset": self.preset}
        checkpointing = "on" if self.measures_memory else "auto"
        return method | {"gradient_accumulation": self.accumulation, "gradient_checkpointing": checkpointing}


MODES = (
    Mode("lora-seed-4x2048", "seed", "longest", "6 GB or less; the article says 10.2 GB"),
    Mode("lora-seed-mix", "seed", "mix", "3 times the plain recipe's tokens/s"),
    Mode("lora-default-mix", "default", "mix", "3 times the plain recipe's tokens/s"),
    Mode("full-4x2048", None, "longest", "16 GB or less; the article says about 32 GB"),
    Mode("full-mix", None, "mix", "3 times the plain recipe's tokens/s"),
)
RECIPES = {
    "plain": "the article's: HF Trainer, batch 4 padded to its longest row, loss over all logits, no checkpointing",
    "plain-padded": "the same, every row padded to 2048",
    "trl": "TRL's SFTTrainer with Liger, batch 4 padded to its longest row",
    "trl-packed": "the same, packed to 8192 tokens",
    "ours": "services.trainer: packed to 8192 tokens, layers compiled",
    "ours-eager": "the same, not compiled",
}


def has(mode: Mode, recipe: str) -> bool:
    """Whether a recipe differs from the others in this mode: where all rows are long, padding and packing do nothing."""
    return mode.lengths == "mix" or recipe not in ("plain-padded", "trl-packed")
