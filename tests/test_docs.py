"""Documentation that cannot rot: every setting, route and error code is told, and what is told exists.

`python -m tests.test_docs` writes deploy/env.example and the table of settings in docs/api.md anew.
"""

from __future__ import annotations

import re

import pytest
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry

from services.api import errors
from services.api.http.schemas import ChatRequest
from services.api.metrics import Metrics
from services.api.settings import Settings
from tests.fakes import ROOT, FakeEngine, Pen, demo_chat_format
from tests.running import service_of

READMES = ("README.md", "README.zh.md")
ENV_EXAMPLE = ROOT / "deploy" / "env.example"
API_PAGE = ROOT / "docs" / "api.md"
HEAD = """\
# Every setting of the API with its default. Copy this file, take the leading # off what you change, and load it into the
# environment before `make serve` (set -a; . ./FILE; set +a) or name it in docker-compose's env_file.
"""


def env_example() -> str:
    lines = []
    for name, field in Settings.model_fields.items():
        default = str(field.default)
        shown = f"'{default}'" if re.search(r"[^\w.:/-]", default) else default
        lines.append(f"#MEDTHINK_{name.upper()}={shown}  # {field.description}")
    return HEAD + "\n".join(lines) + "\n"


SETTINGS_HEAD = "| setting | default | meaning |\n| --- | --- | --- |\n"


def settings_table() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if str(field.default) == "" else f"`{field.default}`"
        rows.append(f"| `MEDTHINK_{name.upper()}` | {default} | {field.description} |")
    return SETTINGS_HEAD + "\n".join(rows) + "\n"


def page(*names: str) -> str:
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names)


def test_the_example_environment_has_every_setting_with_its_default() -> None:
    assert ENV_EXAMPLE.read_text(encoding="utf-8") == env_example(), "run: python -m tests.test_docs"


def test_the_example_environment_taken_as_it_is_changes_nothing() -> None:
    """With the leading # off, every line sets the default: read as a shell and compose read it."""
    values = {}
    for line in ENV_EXAMPLE.read_text(encoding="utf-8").splitlines():
        if found := re.fullmatch(r"#(MEDTHINK_\w+)=('([^']*)'|\S*)  # .+", line):
            values[found[1].removeprefix("MEDTHINK_").lower()] = found[3] if found[3] is not None else found[2]
    assert set(values) == set(Settings.model_fields)
    assert Settings(**values) == Settings.model_construct(**{n: f.default for n, f in Settings.model_fields.items()})


def test_settings_that_documents_name_exist() -> None:
    known = {f"MEDTHINK_{name.upper()}" for name in Settings.model_fields}
    documents = [*READMES, *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]
    named = set(re.findall(r"MEDTHINK_[A-Z_]+[A-Z]", page(*documents)))
    tests_own = {name for name in named if name.startswith("MEDTHINK_TEST_")}
    assert named - tests_own <= known


def test_every_setting_is_in_the_table_of_settings() -> None:
    assert settings_table() in page("docs/api.md"), "run: python -m tests.test_docs"


def metrics_on_the_wire() -> set[str]:
    """Names as Prometheus sees them: a counter's ends in _total."""
    registry = CollectorRegistry()
    Metrics(registry)
    return {f"{m.name}_total" if m.type == "counter" else m.name for m in registry.collect()}


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    documented = set(re.findall(r"^\| `(medthink_\w+)` \|", page("docs/api.md"), re.MULTILINE))
    assert documented == metrics_on_the_wire()


def test_metrics_are_made_in_one_place() -> None:
    """Else the test above would not see them."""
    made = re.compile(r"\b(?:Counter|Gauge|Histogram|Summary|Info)\(\s*\"medthink_")
    files = [p for p in (ROOT / "services").rglob("*.py") if made.search(p.read_text(encoding="utf-8"))]
    assert files == [ROOT / "services" / "api" / "metrics.py"]


def routes() -> set[tuple[str, str]]:
    chat_format = demo_chat_format()
    engine = FakeEngine(chat_format, Pen(chat_format).answer("答"))
    service, _ = service_of(engine, lambda token_id: None, {})
    return {
        (method, re.sub(r"\{\w+(:\w+)?\}", "{id}", route.path))
        for route in service.app.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }


def test_every_route_is_documented() -> None:
    documented = page("docs/api.md")
    assert [f"{method} {path}" for method, path in sorted(routes()) if f"{method} {path}" not in documented] == []


def test_every_documented_route_exists() -> None:
    named = set(re.findall(r"`(GET|POST|DELETE) (/[^`\s]*)`", page("docs/api.md", *READMES)))
    assert named - routes() <= {("GET", "/openapi.json")}


def all_errors(error: type[errors.ApiError] = errors.ApiError) -> list[type[errors.ApiError]]:
    return [error, *(e for sub in error.__subclasses__() for e in all_errors(sub))]


# Classes that only group others are never raised themselves.
GROUPS = {errors.ApiError, errors.Unavailable, errors.Conflict}


def test_every_error_code_is_documented_with_its_status() -> None:
    rows = [line for line in API_PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    for error in all_errors():
        if error not in GROUPS:
            assert any(row.startswith(f"| {error.status} |") and f"`{error.code}`" in row for row in rows), error.code


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    drawn = re.findall(r"(\w+) {2,}(\d{3})(?: (\w+))?", str(errors.__doc__))
    for error in all_errors():
        if error not in GROUPS:
            assert (error.__name__, str(error.status), error.code) in drawn
    assert {name for name, _, _ in drawn} <= {e.__name__ for e in all_errors()}


def test_no_two_errors_share_a_code() -> None:
    codes = [e.code for e in all_errors() if e not in GROUPS]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("name", [n for n, f in ChatRequest.model_fields.items() if f.description])
def test_our_own_request_fields_are_documented(name: str) -> None:
    assert f"`{name}`" in page("docs/api.md")


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for document in [*(ROOT / n for n in READMES), ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{document.name}: {target}")
    assert broken == []


def headings(name: str) -> list[int]:
    """Levels of a document's headings; what lies in code blocks is none."""
    return [
        len(level)
        for level in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", page(name), flags=re.DOTALL), re.MULTILINE)
    ]


def code_blocks(name: str) -> list[tuple[str, list[str]]]:
    """Language and lines of each block: without comments, and of a drawing the names on the left."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", page(name), re.MULTILINE | re.DOTALL):
        cut = r"\s*(?<!\S)#.*" if language else r"(?<=\S) {2,}.*"
        found.append((language, [re.sub(cut, "", line) for line in block.splitlines()]))
    return found


def test_both_readmes_have_the_same_headings() -> None:
    english, chinese = (headings(name) for name in READMES)
    assert english == chinese
    assert len(english) > 5


def test_both_readmes_have_the_same_code() -> None:
    english, chinese = (code_blocks(name) for name in READMES)
    assert english == chinese
    assert {language for language, _ in english} == {"", "sh", "python"}


def test_both_readmes_have_the_same_figures() -> None:
    """Rows of tables, cell by cell: numbers that stand alone are the same in both languages."""

    def figures(name: str) -> list[list[str]]:
        rows = [line.strip("| ").split(" | ") for line in page(name).splitlines() if line.startswith("| ")]
        return [[cell if re.fullmatch(r"[\d. %]+", cell) else "" for cell in row] for row in rows]

    english, chinese = (figures(name) for name in READMES)
    assert english == chinese


def test_each_readme_leads_to_the_other_at_once() -> None:
    for name, other in (READMES, READMES[::-1]):
        assert f"]({other})" in "\n".join(page(name).splitlines()[:4])


@pytest.mark.parametrize("name", READMES)
def test_what_a_readme_names_exists(name: str) -> None:
    """`make` targets, modules behind `python -m`, and paths; files that a run makes lie in .gitignore's folders."""
    text = page(name)
    targets = set(re.findall(r"^([a-z-]+):", page("Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`|\d )make ([a-z-]+)", text, re.MULTILINE)) <= targets
    for module in re.findall(r"python -m ([\w.]+)", text):
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module
    ignored = {line.strip("/") for line in page(".gitignore").splitlines() if line.endswith("/")}
    for path in re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", text):
        if path.split("/")[0] in {p.name for p in ROOT.iterdir()} and path.split("/")[0] not in ignored:
            assert (ROOT / path).exists(), path


if __name__ == "__main__":
    ENV_EXAMPLE.write_text(env_example(), encoding="utf-8")
    text = API_PAGE.read_text(encoding="utf-8")
    old = re.compile(re.escape(SETTINGS_HEAD) + r"(?:\|.*\n)*")
    API_PAGE.write_text(old.sub(lambda _: settings_table(), text), encoding="utf-8")
