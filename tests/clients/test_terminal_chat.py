"""`python -m services.api.chat` in a terminal, as people use it."""

from __future__ import annotations

import pytest

from tests.server import QUESTION, Server
from tests.terminal import Terminal

pytestmark = pytest.mark.clients


def test_a_conversation_in_a_terminal(server: Server) -> None:
    with Terminal(["-m", "services.api.chat", "--url", server.url], LC_ALL="zh_CN.UTF-8") as terminal:
        terminal.wait_for("演示模型")
        terminal.wait_for("您> ")
        terminal.type(f"{QUESTION}\n")
        terminal.wait_for("[思考] ")
        terminal.wait_for("AI 生成，仅供参考")
        terminal.wait_for("您> ", 2)
        terminal.type("/exit\n")
        assert terminal.end() == 0
        session = terminal.shown.rsplit("--session ", 1)[1].split()[0]
    assert "<think>" not in terminal.shown
    arguments = ["-m", "services.api.chat", "--url", server.url, "--session", session]
    with Terminal(arguments, LC_ALL="zh_CN.UTF-8") as terminal:
        terminal.wait_for(QUESTION)
        terminal.wait_for("您> ")
