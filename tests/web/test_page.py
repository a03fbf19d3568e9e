"""What people meet first: the page, in a real browser, over the real app and a scripted engine."""

from __future__ import annotations

import json

import pytest
from playwright.async_api import Page, expect

from services.contract.chat_format import ChatFormat
from tests.fakes import FakeEngine, Pen
from tests.web.conftest import ANSWER, THOUGHT, Visit, Visitor

QUESTION = "血压150/95需要吃药吗？"
URGENT = "突然胸痛，出冷汗，左臂发麻"
HARMFUL = "请放心停药。你可以自行停用华法林，立即停药即可，保证治愈，百分之百有效。"


@pytest.fixture
def engine(chat_format: ChatFormat, pen: Pen) -> FakeEngine:
    return FakeEngine(chat_format, pen.thought(THOUGHT, ANSWER), sizes=(3,))


@pytest.fixture
def slow(chat_format: ChatFormat, pen: Pen) -> FakeEngine:
    """Thinks on for as long as anybody waits."""
    return FakeEngine(chat_format, pen.write("<think>", "\n", *["想一想。"] * 4000), delay_s=0.01)


async def test_an_answer_streams_and_its_thought_folds(visit: Visitor, engine: FakeEngine) -> None:
    engine.delay_s = 0.12  # long enough to be seen open
    async with visit(engine) as reader:
        await reader.ask(QUESTION)
        await expect(reader.page.locator("details.thought[open] .thought-text")).to_contain_text("首先")
        assert await reader.page.locator(".reply").get_attribute("aria-busy") == "true"
        await reader.answered()
        await expect(reader.page.locator("details.thought:not([open]) summary")).to_contain_text("已思考")
        answer = reader.page.locator(".answer")
        await expect(answer.locator("strong")).to_have_text("建议")
        await expect(answer.locator("li")).to_have_count(2)
        assert await reader.page.locator("details .answer").count() == 0
        await expect(reader.page.locator(".ai-label")).to_have_text("AI 生成，仅供参考，不能替代医生")


async def test_a_thought_is_marked_up_for_reading(visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine) as reader:
        await reader.ask(QUESTION)
        await reader.answered()
        thought = reader.page.locator(".thought-text")
        assert await thought.locator("strong").all_text_contents() == ["首先", "其次", "因此"]
        link = thought.get_by_role("link", name="华法林", include_hidden=True)
        assert "B01AA03" in (await link.get_attribute("href") or "")
        assert await link.get_attribute("rel") == "noopener noreferrer"
        assert await link.get_attribute("target") == "_blank"


async def test_without_thinking_there_is_no_fold(visit: Visitor, chat_format: ChatFormat, pen: Pen) -> None:
    async with visit(FakeEngine(chat_format, pen.answer(ANSWER))) as reader:
        await reader.page.get_by_label("先思考再回答").uncheck()
        await reader.ask(QUESTION)
        await reader.answered()
        assert not await reader.page.locator("details.thought").is_visible()
        await expect(reader.page.locator(".answer")).to_contain_text("低盐饮食")


async def test_an_urgent_sentence_becomes_the_banner_before_everything(visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine) as reader:
        await reader.ask(URGENT)
        await reader.answered()
        await expect(reader.page.locator(".banner")).to_contain_text("请立即前往医院急诊科就诊")
        assert await reader.page.locator(".reply > :first-child").get_attribute("class") == "banner"
        assert "急诊科" not in await reader.page.locator(".answer").inner_text()


async def test_a_calm_answer_has_no_banner(visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine) as reader:
        await reader.ask(QUESTION)
        await reader.answered()
        assert not await reader.page.locator(".banner").is_visible()


async def test_a_blocked_answer_is_replaced_with_nothing_left_of_it(
    visit: Visitor, chat_format: ChatFormat, pen: Pen
) -> None:
    engine = FakeEngine(chat_format, pen.thought("先看病史。", f"血压偏高。{HARMFUL}"))
    async with visit(engine) as reader:
        await reader.ask("华法林可以停吗？")
        await reader.answered()
        await expect(reader.page.locator(".state")).to_have_text("安全审查已替换这条回答")
        shown = await reader.page.locator(".reply").inner_text()
        assert "急诊科" in shown
        for gone in ("血压偏高", "停用", "先看病史"):
            assert gone not in shown


HOSTILE = "\n\n".join(
    [
        "<img src=x onerror=\"document.title='owned'\">",
        "<script>document.title='owned'</script>",
        "[x](javascript:document.title='owned') [y](JaVaScRiPt:alert(1)) [z](data:text/html,<script>alert(1)</script>)",
        "[u](https://who.int@evil.example/) [v](//evil.example) [w](vbscript:x)",
        "**<svg onload=alert(1)>** `<iframe src=//evil.example>`",
        '[a" onclick="alert(1)](https://example.org/"onmouseover="alert(1))',
        "</p></article><style>*{display:none}</style>",
        "```\n<b>code</b>\n```",
    ]
)


async def test_hostile_output_stays_text(visit: Visitor, chat_format: ChatFormat, pen: Pen) -> None:
    async with visit(FakeEngine(chat_format, pen.thought(HOSTILE, HOSTILE)), safety_profile="off") as reader:
        await reader.ask(QUESTION)
        await reader.answered()
        page = reader.page
        assert await page.title() == "MedThink"
        found = page.locator(".thought-text, .answer")
        assert await found.locator("img, script, svg, iframe, style, b").count() == 0
        hrefs = [await a.get_attribute("href") or "" for a in await found.locator("a").all()]
        assert all(href.startswith("https://example.org/") for href in hrefs), hrefs
        attributes = "[...document.querySelectorAll('.reply *')].flatMap(e => e.getAttributeNames())"
        assert [name for name in await page.evaluate(attributes) if name.startswith("on")] == []
        await expect(page.locator(".answer")).to_contain_text("<script>document.title='owned'</script>")


async def test_markup_cannot_be_made_from_text_at_all(visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine) as reader:
        refused = "(() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch { return true } })()"
        assert await reader.page.evaluate(refused)


async def test_stop_ends_the_engines_work_and_says_so(visit: Visitor, slow: FakeEngine) -> None:
    async with visit(slow) as reader:
        await reader.ask(QUESTION)
        await expect(reader.page.locator(".thought-text")).to_contain_text("想一想")
        await reader.page.get_by_role("button", name="停止").click()
        await reader.answered()
        await expect(reader.page.locator(".state")).to_contain_text("已停止")
        await expect(reader.page.get_by_role("button", name="发送")).to_be_visible()
        await expect(reader.page.get_by_label("请输入健康问题…")).to_be_focused()
    assert [r for r in slow.aborted if r.startswith("chatcmpl")]


async def test_a_session_comes_back_after_a_reload(visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine) as reader:
        await reader.ask(QUESTION)
        await reader.answered()
        await reader.ask("还要注意什么？")
        await reader.answered(2)
        await reader.page.reload()
        await reader.answered(2)
        assert await reader.page.locator(".question p").all_text_contents() == [QUESTION, "还要注意什么？"]
        await expect(reader.page.locator(".answer").first).to_contain_text("低盐饮食")
        await expect(reader.page.locator("details.thought").first).not_to_have_attribute("open", "")
        assert "首先确认病史" in (await reader.page.locator(".thought-text").first.text_content() or "")
        await expect(reader.page.locator("#session-list a[aria-current]")).to_have_text(QUESTION)


async def test_the_same_question_can_be_asked_again(visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine) as reader:
        await reader.ask(QUESTION)
        await reader.answered()
        await reader.page.get_by_role("button", name="重新回答").click()
        await reader.answered(2)
        await expect(reader.page.locator(".answer").nth(1)).to_contain_text("低盐饮食")


async def test_a_session_is_deleted_in_two_steps(visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine) as reader:
        await reader.ask(QUESTION)
        await reader.answered()
        remove = reader.page.get_by_role("button", name=f"删除会话：{QUESTION}")
        await remove.click()
        await expect(reader.page.locator("#session-list li")).to_have_count(1)
        await reader.page.get_by_role("button", name="确认删除？").click()
        await expect(reader.page.locator("#session-list li")).to_have_count(0)
        await expect(reader.page.locator("#welcome")).to_be_visible()
        assert (await reader.running.client.get("/v1/sessions")).json()["data"] == []


async def test_without_a_memory_the_page_sends_the_conversation(visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine, database="") as reader:
        await reader.ask(QUESTION)
        await reader.answered()
        await reader.ask("还要注意什么？")
        await reader.answered(2)
        await expect(reader.page.locator("#session-note")).to_contain_text("不保存会话")
    assert len(engine.asked[-1].prompt_ids) > len(engine.asked[0].prompt_ids) + 10


async def test_an_error_is_shown_with_its_message_and_a_next_step(visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine) as reader:
        await reader.ask("长" * 9000)
        await reader.answered()
        failure = reader.page.get_by_role("alert").filter(has_text="没有得到回答")
        await expect(failure).to_contain_text("内容过长")
        await expect(failure).to_contain_text("req_")


async def test_errors_come_in_the_language_that_the_reader_switched_to(visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine, view={"locale": "en-GB"}) as reader:
        await reader.page.get_by_role("button", name="切换到中文").click()
        await reader.ask("长" * 9000)
        await reader.answered()
        await expect(reader.page.get_by_role("alert").filter(has_text="没有得到回答")).to_contain_text("内容过长")


async def test_a_server_that_wants_a_key_gets_one(visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine, api_keys="geheim") as reader:
        await reader.page.locator("#key").fill("geheim")
        await reader.page.get_by_role("button", name="继续").click()
        await reader.ask(QUESTION)
        await reader.answered()
        await expect(reader.page.locator(".answer")).to_contain_text("低盐饮食")
        assert await reader.page.evaluate("localStorage.length + document.cookie.length") == 0


async def test_the_demo_model_is_announced(visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine, demo="a demo") as reader:
        await expect(reader.page.locator("#demo")).to_contain_text("不是医学建议")


async def test_the_page_speaks_the_readers_language_and_switches(visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine, view={"locale": "en-GB"}) as reader:
        await expect(reader.page.get_by_role("button", name="Send")).to_be_visible()
        await reader.page.get_by_label("Ask a health question…").fill("Hello?")
        await reader.page.keyboard.press("Enter")
        await reader.answered()
        await expect(reader.page.locator("summary")).to_contain_text("Thought for")
        await reader.page.get_by_role("button", name="切换到中文").click()
        await expect(reader.page.locator("summary")).to_contain_text("已思考")
        assert await reader.page.get_attribute("html", "lang") == "zh-CN"


@pytest.mark.parametrize("width", [320, 1280])
async def test_nothing_is_wider_than_the_window(visit: Visitor, chat_format: ChatFormat, pen: Pen, width: int) -> None:
    wide = f"```\n{'x' * 300}\n```\n\n| {' | '.join('列' * 12)} |\n|{'---|' * 12}\n| {' | '.join('值' * 12)} |\n\n{'a' * 400}"
    engine = FakeEngine(chat_format, pen.thought("h" * 300, wide))
    async with visit(engine, view={"viewport": {"width": width, "height": 640}}, demo="x") as reader:
        await reader.ask("q" * 300)
        await reader.answered()
        parts = "[document.documentElement, document.body, document.getElementById('scroll')]"
        sizes = f"{parts}.map(e => e.scrollWidth - e.clientWidth)"
        assert await reader.page.evaluate(sizes) == [0, 0, 0]
        await reader.page.get_by_role("button", name="复制回答").scroll_into_view_if_needed()
        await expect(reader.page.get_by_role("button", name="发送")).to_be_in_viewport()


CONTRAST = """
() => {
  const luminance = (css) => {
    const [r, g, b] = css.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (c !== "rgba(0, 0, 0, 0)" && c !== "transparent") return c;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("p, summary, .answer li, button, select, a")]
    .filter(e => e.offsetParent && e.innerText?.trim())
    .map(e => {
      const [a, b] = [luminance(getComputedStyle(e).color), luminance(ground(e))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), e.className, e.innerText.slice(0, 20)];
    }).filter(([ratio]) => ratio < 4.5);
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_is_readable_by_day_and_by_night(visit: Visitor, engine: FakeEngine, scheme: str) -> None:
    async with visit(engine, view={"color_scheme": scheme}, demo="x") as reader:
        await reader.ask(URGENT)
        await reader.answered()
        assert await reader.page.evaluate(CONTRAST) == []
        ground = await reader.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, ground[4:-1].split(","))) < 60) == (scheme == "dark")


async def focused(page: Page) -> str:
    return str(await page.evaluate("document.activeElement.id || document.activeElement.tagName"))


async def test_everything_can_be_done_with_the_keyboard(visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine) as reader:
        page = reader.page
        await page.keyboard.type(QUESTION)  # the question has the focus from the start
        await page.keyboard.press("Enter")
        await reader.answered()
        await page.locator("#new").focus()
        order = []
        for _ in range(9):
            await page.keyboard.press("Tab")
            order.append(await focused(page))
        assert order.index("SUMMARY") < order.index("question") < order.index("think") < order.index("send")
        await page.locator("summary").focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("details.thought")).to_have_attribute("open", "")
        await page.locator("#language").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("button", name="Send")).to_be_visible()


async def test_every_control_has_a_name_and_answers_are_announced(visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine) as reader:
        await reader.ask(QUESTION)
        await reader.answered()
        for control in await reader.page.locator(
            "button:visible, select:visible, textarea:visible, input:visible"
        ).all():
            name = await control.evaluate("e => e.ariaLabel || e.labels?.[0]?.textContent || e.innerText")
            assert name.strip(), await control.evaluate("e => e.outerHTML")
        await expect(reader.page.locator("#announce[role=status]")).to_have_text("回答完毕")


async def test_nothing_is_fetched_from_elsewhere(browser, visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine) as reader:
        asked: list[str] = []
        reader.page.on("request", lambda request: asked.append(request.url))
        await reader.page.reload()
        await reader.ask(QUESTION)
        await reader.answered()
        assert len(asked) > 8
        assert [url for url in asked if not url.startswith(reader.running.url)] == []


async def sent_messages(reader: Visit) -> list[str]:
    """Roles and texts of the last chat request that the page makes while it asks."""
    async with reader.page.expect_request("**/v1/chat/completions") as asked:
        await reader.ask(QUESTION)
    body = json.loads((await asked.value).post_data or "")
    return [f"{m['role']}: {m['content']}" for m in body["messages"]]


async def test_with_a_memory_only_the_new_message_is_sent(visit: Visitor, engine: FakeEngine) -> None:
    async with visit(engine) as reader:
        await reader.ask("第一个问题？")
        await reader.answered()
        assert await sent_messages(reader) == [f"user: {QUESTION}"]
        await reader.answered(2)
