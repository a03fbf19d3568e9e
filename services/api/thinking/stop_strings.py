"""Stop strings on the answer's text: nothing of a match is shown, wherever the deltas cut it.

They apply to the answer alone. vLLM's own apply to the thought as well, where a stop at a newline ends every reply empty.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches one answer. Holds back a tail that may be the beginning of a stop string."""

    def __init__(self, strings: Sequence[str], include: bool = False) -> None:
        """`include`: show the stop string itself (vLLM's `include_stop_str_in_output`)."""
        self._strings = tuple(s for s in strings if s)
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """What of the answer may be shown now. After a match (`matched` is set): nothing more."""
        if not self._strings:
            return text
        if self.matched is not None:
            return ""
        text = self._held + text
        # The match that is complete first wins; of those that end together, the longest.
        ends = [(at + len(s), at, s) for s in self._strings if (at := text.find(s)) >= 0]
        if ends:
            end, begin, self.matched = min(ends)
            self._held = ""
            return text[: end if self._include else begin]
        keep = max(_overlap(text, s) for s in self._strings)
        self._held = text[len(text) - keep :] if keep else ""
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back, when the answer ends without a match."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `string`."""
    for n in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:n]):
            return n
    return 0
