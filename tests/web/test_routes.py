"""The page's files over HTTP: who gets the page, what browsers may do with it, and when they must not use an old copy."""

from __future__ import annotations

import re

import pytest

from services.api.web.routes import FILES
from tests.fakes import FakeEngine
from tests.running import Factory, error_of

READER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
def engine(chat_format, pen) -> FakeEngine:
    return FakeEngine(chat_format, pen.answer("答"))


async def test_browsers_get_the_page_and_programs_json(engine, in_process: Factory) -> None:
    async with in_process(engine) as running:
        page = await running.client.get("/", headers=READER)
        assert page.headers["content-type"].startswith("text/html")
        assert "<title>MedThink</title>" in page.text
        assert (await running.client.get("/")).json()["name"] == "MedThink"


@pytest.mark.parametrize("path", ["/", *(f"/web/{path.name}" for path in sorted(FILES.iterdir()))])
async def test_every_file_is_locked_down_and_revalidated(engine, in_process: Factory, path: str) -> None:
    async with in_process(engine, api_keys="k") as running:  # the page itself needs no key: it asks for one
        first = await running.client.get(path, headers=READER)
        assert first.status_code == 200
        policy = first.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert first.headers["x-content-type-options"] == "nosniff"
        assert first.headers["referrer-policy"] == "no-referrer"
        assert first.headers["cache-control"] == "no-cache"
        again = await running.client.get(path, headers=READER | {"if-none-match": f'"x", W/{first.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["none.js", "..%2froutes.py", "routes.py", "%00", "a" * 300])
async def test_no_other_file_is_served(engine, in_process: Factory, name: str) -> None:
    async with in_process(engine) as running:
        error_of(await running.client.get(f"/web/{name}"), 404, "not_found")


def test_the_files_name_no_other_host_and_run_nothing_inline() -> None:
    for path in FILES.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(?:src|href|url|import|from)\W{1,3}(?:https?:)?//", text), path.name
        assert "innerHTML" not in text
        assert "eval(" not in text
    page = (FILES / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", page)


def test_both_languages_say_the_same_things() -> None:
    text = (FILES / "words.js").read_text(encoding="utf-8")
    chinese, english = (re.findall(r"(?:^|[{,]\s+)(\w+):\s", text[a:b], re.M) for a, b in _halves(text))
    assert chinese == english
    assert len(chinese) > 50


def _halves(text: str) -> tuple[tuple[int, int], tuple[int, int]]:
    begin, middle = text.index("const ZH"), text.index("const EN")
    return (begin, middle), (middle, text.index("/** Kept settings"))


def test_every_text_that_the_page_names_exists() -> None:
    words = (FILES / "words.js").read_text(encoding="utf-8")
    named = set(
        re.findall(r'data-(?:text|label|placeholder)="(\w+)"', (FILES / "index.html").read_text(encoding="utf-8"))
    )
    for script in FILES.glob("*.js"):
        named |= set(
            re.findall(
                r'(?:\bsay|\blabel\([^"()]*(?:\([^()]*\))?[^"()]*,|\btell|showNote)\s*\(?"(\w+)"',
                script.read_text("utf-8"),
            )
        )
    assert len(named) > 30
    assert [name for name in named if not re.search(rf"\b{name}:", words)] == []
