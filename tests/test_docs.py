"""Documentation that cannot rot: every setting, route and error code is told, and what is told exists.

`python -m tests.test_docs` writes deploy/env.example anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from services.api import errors
from services.api.http.schemas import ChatRequest
from services.api.settings import Settings
from tests.fakes import ROOT, FakeEngine, Pen, demo_chat_format
from tests.running import service_of

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
    documents = ["README.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]
    named = set(re.findall(r"MEDTHINK_[A-Z_]+[A-Z]", page(*documents)))
    tests_own = {name for name in named if name.startswith("MEDTHINK_TEST_")}
    assert named - tests_own <= known


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
    named = set(re.findall(r"`(GET|POST|DELETE) (/[^`\s]*)`", page("docs/api.md", "README.md")))
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
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{document.name}: {target}")
    assert broken == []


if __name__ == "__main__":
    Path(ENV_EXAMPLE).write_text(env_example(), encoding="utf-8")
