"""The page's modules by themselves, in a browser: events out of any chunks, Markdown as nodes."""

from __future__ import annotations

import pytest

from tests.fakes import FakeEngine
from tests.web.conftest import Visitor

STREAM = (
    'data: {"a":"中文😀"}\r\n\r\n: comment\n\ndata: one\ndata: two\n\nevent: x\ndata:tight\n\nid: 7\n\ndata: last\n\n'
    "data: cut off"
)
READ = """
async ([text, size]) => {
  const { events } = await import("/web/sse.js");
  const bytes = new TextEncoder().encode(text);
  const stream = new ReadableStream({
    start(control) {
      for (let at = 0; at < bytes.length; at += size) control.enqueue(bytes.slice(at, at + size));
      control.close();
    },
  });
  const found = [];
  for await (const data of events(stream)) found.push(data);
  return found;
}
"""
# Each node as name(children), text in quotes, links with their address.
TREE = """
async (text) => {
  const { render } = await import("/web/markdown.js");
  const tree = (node) => {
    if (node.nodeType === 3) return node.data;
    const address = node.localName === "a" ? ` ${node.getAttribute("href")}` : "";
    return `<${node.localName}${address}>${[...node.childNodes].map(tree).join("")}</${node.localName}>`;
  };
  return [...render(text).childNodes].map(tree).join("");
}
"""


@pytest.fixture
def engine(chat_format, pen) -> FakeEngine:
    return FakeEngine(chat_format, pen.answer("答"))


async def test_events_do_not_depend_on_chunks(visit: Visitor, engine) -> None:
    expected = ['{"a":"中文😀"}', "one\ntwo", "tight", "last"]
    async with visit(engine) as reader:
        for size in [1, 2, 3, 5, 8, 1000]:
            assert await reader.page.evaluate(READ, [STREAM, size]) == expected
            assert (
                await reader.page.evaluate(READ, [STREAM.replace("\r\n", "\n").replace("\n", "\r\n"), size]) == expected
            )


MARKDOWN = [
    ("一\n二\n\n三", "<p>一<br></br>二</p><p>三</p>"),
    ("# 题\n## 小**题**", "<h3>题</h3><h4>小<strong>题</strong></h4>"),
    ("- 一\n- *二*\n\n1. 甲\n2. 乙", "<ul><li>一</li><li><em>二</em></li></ul><ol><li>甲</li><li>乙</li></ol>"),
    ("[**粗**](https://a.org/x_(y))。", "<p><a https://a.org/x_(y)><strong>粗</strong></a>。</p>"),
    ("看 https://a.org/b. 完", "<p>看 <a https://a.org/b>https://a.org/b</a>. 完</p>"),
    ("`**a** [b](https://c.d)`", "<p><code>**a** [b](https://c.d)</code></p>"),
    ("```py\n**a**\n<b>\n```\n后", "<pre><code>**a**\n<b></code></pre><p>后</p>"),
    ("```\n没有结束", "<pre><code>没有结束</code></pre>"),
    ("|a|b|\n|-|-|\n", "<p>|a|b|<br></br>|-|-|</p>"),
    (
        "|a|b|\n|--|--|\n|1|2|",
        "<div><table><thead><tr><th>a</th><th>b</th></tr></thead>"
        "<tbody><tr><td>1</td><td>2</td></tr></tbody></table></div>",
    ),
    ("[x](javascript:alert(1)) [y](data:text/html,1)", "<p>[x](javascript:alert(1)) [y](data:text/html,1)</p>"),
    ("[z](//a.b)", "<p>[z](//a.b)</p>"),
    ("[u](https://who.int@evil.example/)", "<p>[u](https://who.int@evil.example/)</p>"),
    ("<b>x</b> &amp; a < b", "<p><b>x</b> &amp; a < b</p>"),
    ("2 * 3 * 4 ** 5", "<p>2 * 3 * 4 ** 5</p>"),
]  # fmt: skip


async def test_markdown_becomes_nodes(visit: Visitor, engine) -> None:
    async with visit(engine) as reader:
        for text, expected in MARKDOWN:
            assert await reader.page.evaluate(TREE, text) == expected, text


@pytest.mark.parametrize(
    "piece", ["**", "[", "[](", "`", "*a", "](https://a.b/(", "| ", "- ", "<", "![", "https://", "\n> "]
)
async def test_hostile_text_is_drawn_in_time(visit: Visitor, engine, piece: str) -> None:
    async with visit(engine) as reader:
        drawn = (
            "async (t) => { const { render } = await import('/web/markdown.js'); return render(t).textContent.length }"
        )
        assert await reader.page.evaluate(drawn, piece * (20_000 // len(piece))) >= 0
