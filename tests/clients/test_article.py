"""The founding article's program, word for word but for its URL: one question, and the conversation of its section 4.2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.clients

ADDRESS = "https://gpu-pod69523bb78b8ef44ff14daa57-8000.web.gpu.csdn.net/v1"

CALL = """
from langchain_openai import ChatOpenAI
import os
chat_model = ChatOpenAI(
    model="Qwen3-1.7B",  # 告知LangChain调用目标模型名称
    temperature=0.5,  # 控制输出随机性:0.5平衡创造性与稳定性
    base_url="https://gpu-pod69523bb78b8ef44ff14daa57-8000.web.gpu.csdn.net/v1",  # 镜像服务地址(注意端口必须为8000)
    api_key="EMPTY",  # 预置镜像使用空密钥认证
    extra_body={
        "enable_thinking": True,  # 强制启用思维链模式
        "return_reasoning": True,  # 返回思考过程文本(非仅隐藏状态)
    },
    streaming=True,  # 开启流式输出,避免用户等待整段生成
)
"""

FIRST = """
response = chat_model.invoke("请分析:患者女,68岁,突发右侧肢体无力伴言语不清2小时,既往高血压病史10年。")
print(response.content)
"""

HIGHLIGHT = r"""
import re
def highlight_reasoning(text):
    # 高亮逻辑连接词
    text = re.sub(r"(首先|其次|然后|最后|因此|综上)", r"**\1**", text)
    # 标注指南引用(简化版)
    text = re.sub(r"(\d{4}\s*[A-Z]+/[A-Z]+\s*[\u4e00-\u9fa5]+)", r"[\1](https://guideline.example.com)", text)
    return text
"""

CONVERSATION = r"""
messages = [
    {"role": "system", "content": "你是一名严谨的医疗AI助手,所有回答必须基于循证医学,不确定时明确告知。"}
]
while True:
    user_input = input("患者描述:")
    if user_input.lower() in ["quit", "exit"]:
        break
    messages.append({"role": "user", "content": user_input})
    # 调用模型(传入完整历史)
    response = chat_model.invoke(messages)
    assistant_reply = response.content
    # 解析思考与答案部分
    reasoning_match = re.search(r"<\|ReasoningBegin\|>(.*?)<\|ReasoningEnd\|>", assistant_reply, re.DOTALL)
    answer_match = re.search(r"<\|AnswerBegin\|>(.*?)$", assistant_reply, re.DOTALL)
    if reasoning_match:
        print("【思考过程】\n" + highlight_reasoning(reasoning_match.group(1).strip()))
    if answer_match:
        print("【专业建议】\n" + answer_match.group(1).strip())
    messages.append({"role": "assistant", "content": assistant_reply})
"""


def run(program: str, url: str, **names: Any) -> dict[str, Any]:
    """Runs the program at another address and gives its variables."""
    assert program.count(ADDRESS) == 1
    variables: dict[str, Any] = {"__name__": "__main__", **names}
    exec(compile(program.replace(ADDRESS, url), "article", "exec"), variables)
    return variables


def test_its_first_question_prints_both_parts(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(CALL + FIRST, url)
    printed = capsys.readouterr().out
    assert printed.startswith("<|ReasoningBegin|>")
    reasoning, answer = printed.split("<|ReasoningEnd|><|AnswerBegin|>")
    assert "首先" in reasoning
    assert "120" in answer
    assert "<|" not in answer


def test_its_conversation_finds_and_shows_both_parts_of_every_turn(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ["左心室EF值35%是什么意思？", "服用华法林期间能否吃纳豆？", "QUIT"]
    turns: Iterator[str] = iter(said)
    variables = run(CALL + HIGHLIGHT + CONVERSATION, url, input=lambda prompt: next(turns))
    printed = capsys.readouterr().out
    assert printed.count("【思考过程】") == 2
    assert printed.count("【专业建议】") == 2
    assert "**首先**" in printed
    assert "<|" not in printed
    first, second = printed.split("【思考过程】")[1:]
    assert "射血分数" in first
    assert "维生素K" in second
    messages = variables["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    for reply in (messages[2]["content"], messages[4]["content"]):
        assert re.fullmatch(r"<\|ReasoningBegin\|>[^<]+<\|ReasoningEnd\|><\|AnswerBegin\|>[^<]+", reply)
