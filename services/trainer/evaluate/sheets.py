"""What `blind` gives out and `score` takes back: the key, the seal, the packets and the sheets.

A packet is what one rater gets: items, each a question with two answers named A and B. The key says which arm A was; its
hash (the seal) is published before the first rating, so that nobody can choose the arms afterwards. A sheet is what comes
back. A sheet names the packet it belongs to by hash, so that sheets of another packet are refused and never counted.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.trainer.evaluate.answers import Arm

FORMAT = 1
Side = Literal["A", "B"]
Guess = Literal["A", "B", "unsure"]
Dimension = Literal["logic", "accuracy", "risk", "readability"]
# In the order of the form; the article's names (section 5).
DIMENSIONS: dict[Dimension, str] = {
    "logic": "思考路径逻辑性",
    "accuracy": "答案临床准确性",
    "risk": "风险提示完整性",
    "readability": "语言可读性",
}


class SheetError(ValueError):
    """Sheets, key or packets that cannot be used; the message names the file, the cause and the next step."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reply(_Strict):
    """One answer as the rater sees it; both arms in the same form."""

    reasoning: str
    answer: str


class Item(_Strict):
    """One question with its two answers. `id` is random and differs from rater to rater."""

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    question: str
    replies: dict[Side, Reply]


class Packet(_Strict):
    """What one rater gets; nothing in it tells the arms apart. `practice` items are shown first and never counted."""

    format: int = FORMAT
    study: str = Field(pattern=r"^[0-9a-f]{16}$", description="random; the same for all raters of one `blind`")
    rater: str
    practice: tuple[Item, ...] = ()
    items: tuple[Item, ...]


class KeyItem(_Strict):
    """What an item was. `repeat_of` is an earlier item's id of the same rater: the same pair again, sides swapped or not."""

    id: str
    scenario: str
    seed: int
    A: Arm
    repeat_of: str | None = None

    def arm(self, side: Side) -> Arm:
        other: Arm = "base" if self.A == "adapter" else "adapter"
        return self.A if side == "A" else other


class RaterKey(_Strict):
    packet_sha256: str
    items: tuple[KeyItem, ...]


class Key(_Strict):
    """Kept from everybody who talks to raters until all sheets are in. `salt` makes its hash say nothing of its content."""

    format: int = FORMAT
    study: str
    salt: str = Field(pattern=r"^[0-9a-f]{64}$")
    answers_sha256: str
    raters: dict[str, RaterKey]


class Seal(_Strict):
    """Published beside the packets before the first rating. It holds no arm."""

    format: int = FORMAT
    study: str
    key_sha256: str
    raters: dict[str, str] = Field(description="rater: hash of the packet")
    created: float = Field(description="seconds since 1970")


class SideRating(_Strict):
    """1 to 5 in each dimension; `harm`: following this answer could hurt somebody badly."""

    logic: int = Field(ge=1, le=5)
    accuracy: int = Field(ge=1, le=5)
    risk: int = Field(ge=1, le=5)
    readability: int = Field(ge=1, le=5)
    harm: bool = False


class Rating(_Strict):
    """One item, rated. `guess`: which side the rater takes for the trained adapter's."""

    item: str
    A: SideRating
    B: SideRating
    guess: Guess
    comment: str = ""


class Sheet(_Strict):
    """What a rater returns. `locked`: the rater has said that it is final; an unlocked sheet is never counted.

    `sha256` is of everything else, as `content_sha256` makes it: it finds slips and torn copies, not forgers.
    """

    format: int = FORMAT
    study: str
    rater: str
    packet_sha256: str
    locked: bool
    finished: str | None = Field(default=None, description="ISO 8601, the rater's clock")
    simulated: bool = False
    ratings: tuple[Rating, ...]
    sha256: str


def content_sha256(content: BaseModel | dict[str, Any], without: tuple[str, ...] = ()) -> str:
    """Of the JSON with keys sorted, no spaces, UTF-8; the form makes the same bytes (strings, integers, booleans)."""
    data = content.model_dump(mode="json") if isinstance(content, BaseModel) else dict(content)
    for name in without:
        data.pop(name, None)
    text = json.dumps(data, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
