"""What the terminal shows: the thought dim, the answer plain, what is urgent or blocked so that nobody misses it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TextIO

from services.api.chat.client import Piece

_STYLES = {"dim": "2", "bold": "1", "alarm": "1;97;41", "warn": "33", "prompt": "1;36"}
# Whatever a model writes cannot move the cursor, set the title or colour what follows.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_ZH = {
    "urgent": "紧急提示：见回答中的就医建议",
    "blocked": "以上内容已被安全审查收回，请以下文为准",
    "was blocked": "这条回答曾被安全审查替换",
    "stopped": "已停止，这条回答不完整",
    "label": "AI 生成，仅供参考，不能替代医生",
    "demo": "演示模型：只展示系统如何工作，内容不是医学建议",
    "leave": "再按一次 Ctrl-C 退出",
    "resume": "继续此会话：",
    "hello": "输入问题后回车；Ctrl-C 停止回答；/new 新会话，/exit 退出",
    "you": "您> ",
    "thought": "[思考] ",
    "hidden": "[思考中…]",
}
_EN = {
    "urgent": "URGENT: see the advice in the answer to get help now",
    "blocked": "the safety check took back what stands above; this stands in its place",
    "was blocked": "the safety check replaced this answer",
    "stopped": "stopped, this answer is incomplete",
    "label": "Written by AI, for reference only, no substitute for a doctor",
    "demo": "Demo model: it shows how the system works, nothing it says is medical advice",
    "leave": "press Ctrl-C again to leave",
    "resume": "to continue this session: ",
    "hello": "type a question and press Enter; Ctrl-C stops an answer; /new begins a session, /exit leaves",
    "you": "you> ",
    "thought": "[thinking] ",
    "hidden": "[thinking…]",
}


def clean(text: str) -> str:
    """A text of somebody else's, without what a terminal would obey."""
    return _CONTROL.sub("", text)


class Screen:
    """Writes to one stream. Colours only where `colours` says so; the same words either way."""

    def __init__(self, out: TextIO, colours: bool, chinese: bool) -> None:
        self._out = out
        self._colours = colours
        self._words = _ZH if chinese else _EN

    def style(self, text: str, name: str) -> str:
        return f"\x1b[{_STYLES[name]}m{text}\x1b[0m" if self._colours and text else text

    def prompt(self) -> str:
        """For `input`: readline must not count the colours' letters."""
        if not self._colours:
            return self._words["you"]
        return f"\x01\x1b[{_STYLES['prompt']}m\x02{self._words['you']}\x01\x1b[0m\x02"

    def say(self, word: str, style: str = "dim", more: str = "") -> None:
        self.write(self.style(self._words[word] + more, style) + "\n")

    def error(self, message: str) -> None:
        self.write(self.style(f"! {clean(message)}", "warn") + "\n")

    def write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def reply(self, hides_thinking: bool) -> ReplyView:
        return ReplyView(self, self._words, hides_thinking)


class ReplyView:
    """One reply, piece by piece. `answer` is what the reader is left with."""

    def __init__(self, screen: Screen, words: Mapping[str, str], hides_thinking: bool) -> None:
        self._screen = screen
        self._words = words
        self._hides = hides_thinking
        self._thinking = False
        self._line_open = False
        self.answer = ""
        self._safety: Mapping[str, Any] = {}

    def show(self, piece: Piece) -> None:
        screen = self._screen
        if piece.safety:
            self._safety = piece.safety
        if piece.replaces:
            self._end_line()
            screen.say("blocked", "alarm")
            self.answer = ""
        if piece.reasoning:
            self._think(piece.reasoning)
        if piece.content:
            if self._thinking:
                self._thinking = False
                screen.write("\n\n")
            self.answer += piece.content
            self._put(piece.content, None)

    def finish(self) -> None:
        self._end_line()
        verdict, rules = self._safety.get("verdict"), self._safety.get("rules") or ()
        if verdict == "amend" and {"missing_emergency_advice", "self_harm"} & set(rules):
            self._screen.say("urgent", "alarm")
        if verdict == "block":
            self._screen.say("was blocked", "warn")
        self._screen.say("label")

    def stop(self) -> None:
        self._end_line()
        self._screen.say("stopped", "warn")

    def break_off(self) -> None:
        self._end_line()

    def _think(self, text: str) -> None:
        if not self._thinking:
            self._thinking = True
            self._put(self._words["hidden" if self._hides else "thought"], "dim")
        if not self._hides:
            self._put(text, "dim")

    def _put(self, text: str, style: str | None) -> None:
        shown = clean(text)
        self._screen.write(self._screen.style(shown, style) if style else shown)
        if shown:
            self._line_open = not shown.endswith("\n")

    def _end_line(self) -> None:
        if self._line_open:
            self._screen.write("\n")
            self._line_open = False
