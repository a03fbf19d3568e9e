"""The form in a real browser, from the disk: rated, closed, opened again, locked, and taken by `score`'s reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from services.trainer.__main__ import main
from services.trainer.evaluate.collect import SEAL, collect
from services.trainer.evaluate.form import form_html
from services.trainer.evaluate.sheets import Packet, Sheet, content_sha256
from tests.trainer.evaluate.study import make_study

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

COMMENT = '好 😀 "引号" \\ \u2028 é\n第二行 </script>'


@pytest.fixture
def blinded(tmp_path: Path) -> Path:
    """A folder with `run`, `packets` and `key.json`."""
    made = make_study(tmp_path / "made", scenarios=6)
    arguments = ["--run", str(made.run), "--out", str(tmp_path / "packets"), "--key", str(tmp_path / "key.json")]
    assert main(["blind", *arguments, "--raters", "2", "--seed", "3"]) == 0
    (tmp_path / "run").symlink_to(made.run)
    return tmp_path


def open_form(page: Page, path: Path) -> list[str]:
    """Opens it without a network; what the browser complains of is collected."""
    complaints: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.context.set_offline(True)
    page.goto(path.as_uri())
    return complaints


def rate(page: Page, score: int) -> None:
    for name in ("logic", "accuracy", "risk", "readability"):
        for side, value in (("A", score), ("B", 6 - score)):
            page.locator(f"input[name='{name}-{side}']").nth(5 - value).check()
    page.locator("input[name='guess']").nth(score % 3).check()


def rate_all(page: Page, packet: Packet) -> None:
    for n in range(len(packet.items)):
        page.select_option("#jump", str(len(packet.practice) + n))
        rate(page, n % 5 + 1)


def test_a_rater_rates_closes_resumes_locks_and_returns(sync_page: Page, blinded: Path) -> None:
    page, folder = sync_page, blinded / "packets" / "r1"
    packet = Packet.model_validate_json((blinded / "packets" / "r1.json").read_bytes())
    complaints = open_form(page, folder / "form.html")
    assert "练习" in page.inner_text("#heading")
    assert page.locator(".answer .text").first.inner_text().strip()
    page.click("#next")
    rate_all(page, packet)
    page.locator("input[name='harm-A']").check()
    page.fill("textarea", COMMENT)
    assert page.locator("#lock").is_disabled()
    page.reload()
    assert page.input_value("textarea") == COMMENT
    assert f"{len(packet.items)}/{len(packet.items)}" in page.inner_text("#progress")
    page.check("#sure")
    with page.expect_download() as caught:
        page.click("#lock")
    assert caught.value.suggested_filename == "r1.json"
    returned = blinded / "r1.json"
    caught.value.save_as(returned)
    sheet = Sheet.model_validate_json(returned.read_bytes())
    assert sheet.sha256 == content_sha256(sheet, without=("sha256",))
    assert sheet.ratings[-1].comment == COMMENT
    assert sheet.ratings[-1].A.harm
    assert [r.A.logic for r in sheet.ratings] == [n % 5 + 1 for n in range(len(packet.items))]
    found = collect(blinded / "run", blinded / "packets", blinded / "key.json", [returned], allow_missing=["r2"])
    assert len(found.rated) == len(packet.items)
    # Locked stays locked.
    page.reload()
    assert page.locator("input[type='radio']:enabled").count() == 0
    assert page.locator("#download").is_visible()
    assert complaints == []


def test_a_draft_goes_to_another_browser_and_another_form_refuses_it(sync_page: Page, blinded: Path) -> None:
    page = sync_page
    open_form(page, blinded / "packets" / "r1" / "form.html")
    rate(page, 4)
    with page.expect_download() as caught:
        page.click("#save")
    draft = blinded / "draft.json"
    caught.value.save_as(draft)
    page.evaluate("localStorage.clear()")
    page.reload()
    assert page.locator("input[type='radio']:checked").count() == 0
    page.set_input_files("#load", str(draft))
    page.wait_for_function("document.querySelectorAll('input[type=radio]:checked').length === 9")
    page.goto((blinded / "packets" / "r2" / "form.html").as_uri())
    page.set_input_files("#load", str(draft))
    page.wait_for_selector("#notice:not([hidden])")
    assert page.locator("input[type='radio']:checked").count() == 0


def test_text_of_a_model_is_never_markup_and_no_request_leaves(sync_page: Page, blinded: Path) -> None:
    page, path = sync_page, blinded / "form.html"
    packet = Packet.model_validate_json((blinded / "packets" / "r1.json").read_bytes())
    text = "</script><script>document.title='hurt'</script><img src=x onerror=\"document.title='hurt'\">%SCRIPT% <!--"
    item: Any = packet.items[0].model_dump()
    item["question"] = text
    item["replies"] = {side: {"reasoning": text, "answer": text} for side in ("A", "B")}
    path.write_bytes(form_html(Packet.model_validate({**packet.model_dump(), "practice": [], "items": [item]})))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    complaints = open_form(page, path)
    assert page.inner_text("#question") == text
    assert page.title() == "双盲评分表 Rating form"
    assert asked == [path.as_uri()]
    assert complaints == []


@pytest.mark.parametrize("width", [320, 1200])
def test_nothing_is_wider_than_the_screen(sync_page: Page, blinded: Path, width: int) -> None:
    sync_page.set_viewport_size({"width": width, "height": 900})
    open_form(sync_page, blinded / "packets" / "r1" / "form.html")
    assert sync_page.evaluate("document.documentElement.scrollWidth") <= width
    unnamed = sync_page.evaluate(
        "[...document.querySelectorAll('input:not([type=file]), select, textarea, button')].filter("
        "e => !(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim())).length"
    )
    assert unnamed == 0


def test_the_seal_is_of_the_key(blinded: Path) -> None:
    seal = json.loads((blinded / "packets" / SEAL).read_bytes())
    key = json.loads((blinded / "key.json").read_bytes())
    assert seal["key_sha256"] == content_sha256(key)
