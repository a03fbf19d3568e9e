"""`python -m services.api.chat`: a conversation in the terminal with any server, thought and answer as they are written."""

from __future__ import annotations

import argparse
import contextlib
import locale
import os
import sys
from collections.abc import Sequence
from typing import Any

from services.api.chat.client import ChatError, Client
from services.api.chat.screen import Screen, clean

URL = "http://127.0.0.1:8000"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when the reader left; 1 when the server could not be reached or refused what was asked for at the start."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    screen = Screen(sys.stdout, sys.stdout.isatty() and "NO_COLOR" not in os.environ, _is_chinese())
    key = os.environ.get("MEDTHINK_API_KEY") or os.environ.get("OPENAI_API_KEY") or ""
    if terminal:
        _edit_lines()
    try:
        talk = Talk(Client(options.url, key), screen, options)
        talk.begin()
        return talk.run(terminal)
    except ChatError as error:
        print(f"chat: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # in the moment between two prompts
        print()
        return 130


def _edit_lines() -> None:
    """Editing and history of the line, where Python has them; in UTF-8 even where the named locale is not installed."""
    try:
        locale.setlocale(locale.LC_CTYPE, "")
    except locale.Error:
        os.environ["LC_ALL"] = "C.UTF-8"  # without it readline drops the letters of Chinese
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.api.chat",
        description="Talk to a server in the terminal. Questions can also come through a pipe, one a line.",
        epilog="The key, where the server wants one, is read from MEDTHINK_API_KEY or OPENAI_API_KEY.",
    )
    parser.add_argument("--url", default=URL, help=f"the server (default: {URL})")
    parser.add_argument("--model", help="a name of /v1/models (default: the server's)")
    parser.add_argument("--session", metavar="ID", help="go on with a stored session")
    parser.add_argument("--no-think", action="store_true", help="answer without thinking")
    parser.add_argument("--hide-thinking", action="store_true", help="let it think, but do not show it")
    return parser


def _is_chinese() -> bool:
    named = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG") or ""
    return named.lower().startswith("zh")


class Talk:
    """A conversation: in a session of the server's where it keeps them, else with the history sent each time."""

    def __init__(self, client: Client, screen: Screen, options: argparse.Namespace) -> None:
        self._client = client
        self._screen = screen
        self._options = options
        self._session: str | None = options.session
        self._remembers = True
        self._history: list[dict[str, str]] = []

    def begin(self) -> None:
        """Says who is there and shows a resumed session. Raises `ChatError`."""
        cards = self._client.models()
        named = [card for card in cards if card.get("id") == self._options.model]
        if self._options.model and not named:
            known = ", ".join(str(card.get("id")) for card in cards)
            raise ChatError(f"the server has no model {self._options.model!r}: it has {known}")
        if any(card.get("demo") for card in named or cards):
            self._screen.say("demo", "warn")
        if self._session is not None:
            for turn in self._client.session(self._session)["turns"]:
                self._show_stored(turn)

    def run(self, terminal: bool) -> int:
        if terminal:
            self._screen.say("hello")
        warned = False
        while True:
            try:
                question = input(self._screen.prompt() if terminal else "").strip()
            except EOFError:
                break
            except KeyboardInterrupt:
                self._screen.write("\n")
                if warned or not terminal:
                    break
                warned = True
                self._screen.say("leave")
                continue
            warned = False
            if question == "/exit":
                break
            if question == "/new":
                self._session, self._history = None, []
            elif question:
                self._ask(question)
        if self._session is not None and terminal:
            self._screen.write("\n")
            self._screen.say("resume", more=self._resume_command())
        return 0

    def _ask(self, question: str) -> None:
        view = self._screen.reply(self._options.hide_thinking)
        try:
            pieces = self._client.chat(self._body(question))
            with contextlib.closing(pieces):
                for piece in pieces:
                    view.show(piece)
            view.finish()
            self._history += [{"role": "user", "content": question}, {"role": "assistant", "content": view.answer}]
        except KeyboardInterrupt:
            view.stop()
        except ChatError as error:
            view.break_off()
            self._screen.error(str(error))

    def _body(self, question: str) -> dict[str, Any]:
        asked: dict[str, Any] = {"enable_thinking": not self._options.no_think}
        if self._options.model:
            asked["model"] = self._options.model
        if self._remembers and self._session is None:
            self._session = self._client.new_session(question)
            self._remembers = self._session is not None
        new = [{"role": "user", "content": question}]
        if self._session is not None:
            return {**asked, "session_id": self._session, "messages": new}
        return {**asked, "messages": [*self._history, *new]}

    def _show_stored(self, turn: dict[str, Any]) -> None:
        for message in turn["messages"]:
            if message["role"] == "user":
                self._screen.write(f"{self._screen.style('>', 'bold')} {clean(str(message['content']))}\n")
        self._screen.write(f"{clean(turn.get('answer') or '')}\n")
        if turn.get("status") == "blocked":
            self._screen.say("was blocked", "warn")
        elif turn.get("status") == "aborted":
            self._screen.say("stopped", "warn")
        self._screen.write("\n")

    def _resume_command(self) -> str:
        url = "" if self._options.url == URL else f" --url {self._options.url}"
        return f"python -m services.api.chat{url} --session {self._session}"


if __name__ == "__main__":
    sys.exit(main())
