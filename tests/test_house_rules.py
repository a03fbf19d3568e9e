"""The house rules, enforced: who may import whom, nothing at import, sizes, names, words that must not be in the repository."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.fakes import ROOT

SOURCE = sorted(path for folder in ("services", "benchmarks", "deploy") for path in (ROOT / folder).rglob("*.py"))
SERVICES = [path for path in SOURCE if path.is_relative_to(ROOT / "services")]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MOST_LINES = 350

# Longer than the rest, and why.
LONG_FILES = {
    "services/contract/chat_format.py": "writer and reader of one format: each is the other's proof",
    "services/contract/adapter_manifest.py": "publishing and verifying are two ends of one contract",
    "services/api/turn.py": "the one place that knows a turn's order",
    "services/api/safety/drugs.py": "a table's columns, and the check of each beside it",
    "services/api/safety/rules/dosage.py": "every way in which a dose can hurt, read from one sentence",
}
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers", "core"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path: Path) -> set[str]:
    """Every module that a file names in an import, anywhere in it; `from a import b` counts as a and a.b."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def offenders(paths: list[Path], forbidden: tuple[str, ...]) -> list[str]:
    """Files that import a forbidden module or anything below it."""
    return [
        f"{name_of(path)} imports {module}"
        for path in paths
        for module in sorted(imports_of(path))
        if any(module == name or module.startswith(f"{name}.") for name in forbidden)
    ]


def below(*modules: str) -> list[Path]:
    """Files of these modules or packages; an arrow whose tail no longer exists is an error."""
    found = [p for p in SERVICES if any(name_of(p) == m or name_of(p).startswith(f"{m}.") for m in modules)]
    for module in modules:
        assert any(name_of(p) == module or name_of(p).startswith(f"{module}.") for p in found), f"no {module} any more"
    return found


def without(paths: list[Path], *modules: str) -> list[Path]:
    return [p for p in paths if not any(name_of(p) == m or name_of(p).startswith(f"{m}.") for m in modules)]


API, WEB = "services.api", ("fastapi", "starlette", "uvicorn")


@pytest.mark.parametrize(
    ("tails", "heads"),
    [
        pytest.param(below("services.api"), ("services.trainer",), id="the api never imports the trainer"),
        pytest.param(below("services.trainer"), ("services.api",), id="the trainer never imports the api"),
        pytest.param(
            below("services.contract"), ("services.api", "services.trainer"), id="the contract imports neither"
        ),
        pytest.param(without(SOURCE, "services.api.engine"), ("vllm",), id="only the engine imports vllm"),
        pytest.param(
            below("services.api", "services.contract"), ("torch", "transformers", "peft"), id="serving knows no torch"
        ),
        pytest.param(
            below(*(f"{API}.{m}" for m in ("engine", "thinking", "prompt", "tools", "turn", "events", "errors"))),
            (*WEB, f"{API}.http", f"{API}.app"),
            id="stages know no http",
        ),
        pytest.param(
            below(f"{API}.thinking"),
            (f"{API}.engine", f"{API}.turn", f"{API}.prompt", f"{API}.memory", f"{API}.adapters", f"{API}.safety"),
            id="thinking knows no other stage",
        ),
        pytest.param(
            below(f"{API}.engine"),
            (f"{API}.thinking", f"{API}.turn", f"{API}.prompt", f"{API}.memory", f"{API}.adapters", f"{API}.safety"),
            id="the engine knows no other stage",
        ),
        pytest.param(
            below(f"{API}.prompt"),
            (f"{API}.engine", f"{API}.thinking", f"{API}.turn", f"{API}.adapters"),
            id="the prompt knows no other stage",
        ),
        pytest.param(
            without(below(API), f"{API}.app", f"{API}.__main__"),
            (f"{API}.app", f"{API}.settings", f"{API}.engine.vllm"),
            id="only the app and main read settings and construct",
        ),
        pytest.param(
            below(f"{API}.turn"), (f"{API}.engine.supervisor", f"{API}.logs"), id="the turn knows protocols only"
        ),
    ],
)
def test_arrows_point_inwards(tails: list[Path], heads: tuple[str, ...]) -> None:
    assert offenders(tails, heads) == []


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("services.contract", {"pydantic", "services"}),
        ("services.api.events", set()),
        ("services.api.errors", set()),
        ("services.api.engine.base", set()),
        ("services.api.logs", set()),
        ("services.api.metrics", {"prometheus_client"}),
    ],
)
def test_the_innermost_modules_need_little_beside_the_standard_library(module: str, allowed: set[str]) -> None:
    for path in below(module):
        others = {name.partition(".")[0] for name in imports_of(path)} - set(sys.stdlib_module_names)
        assert others <= allowed, name_of(path)


# What may be called while a module of the API or the contract is imported: declarations, and nothing that acts.
DECLARATIONS = {
    # Constants that are put together from others, and patterns: they touch nothing.
    "'|'.join", "enumerate", "float", "re.escape", "re2.compile", "sorted", "stdlib_re.compile", "tuple",
    "BeforeValidator", "functools.lru_cache",
    "ConfigDict", "ContextVar", "Field", "Path", "Path(__file__).resolve", "SettingsConfigDict", "TypeVar", "dataclass",
    "field", "frozenset", "logging.getLogger", "re.compile",
}  # fmt: skip


def calls_at_import(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Call):
        yield ast.unparse(node.func)
    for child in ast.iter_child_nodes(node):
        yield from calls_at_import(child)


def test_nothing_is_constructed_at_import() -> None:
    found = [
        f"{name_of(path)} calls {call}"
        for path in below("services.api", "services.contract")
        for call in calls_at_import(tree_of(path))
        if call not in DECLARATIONS
    ]
    assert found == []


# Runs in a process of its own: blocks what serving must not need, and refuses everything that acts on the world.
IMPORT_ALL = """
import sys
for name in ("torch", "vllm", "transformers", "peft"):
    sys.modules[name] = None
import importlib, threading
def refuse(event, arguments):
    acts = {"socket.connect", "socket.bind", "subprocess.Popen", "os.system", "os.mkdir", "os.remove", "os.rename"}
    writes = event == "open" and isinstance(arguments[1], str) and set("wax+") & set(arguments[1])
    if event in acts or writes:
        raise SystemExit(f"acts at import: {event} {arguments}")
names = sys.argv[1:]
import asyncio, fastapi, pydantic_settings, prometheus_client, orjson, yaml, numpy, uvicorn  # theirs may do as they like
sys.addaudithook(refuse)
for name in names:
    importlib.import_module(name)
assert threading.active_count() == 1, threading.enumerate()
import logging
assert not logging.getLogger().handlers, "a logger was set up"
print(len(names))
"""


def test_the_api_imports_without_torch_and_vllm_and_does_nothing() -> None:
    names = [name_of(path) for path in below("services.api", "services.contract")]
    assert "services.api.app" in names
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error::ImportWarning", "-c", IMPORT_ALL, *names],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == str(len(names))


@pytest.mark.parametrize("path", [*SOURCE, *TESTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    if path.name == "__init__.py" and not path.read_text(encoding="utf-8").strip():
        return
    assert ast.get_docstring(tree_of(path)), "no module docstring"


def untyped(path: Path) -> list[str]:
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            missing = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if missing or node.returns is None:
                found.append(f"{name_of(path)}.{node.name}")
    return found


def test_every_function_of_the_services_is_typed() -> None:
    assert [name for path in SERVICES for name in untyped(path)] == []


def test_no_file_is_long_without_a_reason() -> None:
    lines = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCE}
    assert {name for name, count in lines.items() if count > MOST_LINES and name not in LONG_FILES} == set()
    # An exception that is no longer needed, or not for this file, is taken back.
    assert {name for name in LONG_FILES if lines[name] <= MOST_LINES * 0.8} == set()


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert [str(p) for p in [*SOURCE, *TESTS] if p.stem.strip("_") in BANNED_NAMES or p.stem.startswith("base_")] == [
        str(
            ROOT / "services/trainer/base_model.py"
        )  # the model that adapters are trained on: "base" is the field's word
    ]


def test_tests_import_no_other_test() -> None:
    found = [
        f"{name_of(path)} imports {module}"
        for path in TESTS
        for module in imports_of(path)
        if module.startswith("tests.") and re.search(r"\.test_\w+", module)
    ]
    assert found == []


def test_every_test_file_is_one_that_pytest_finds() -> None:
    lost = [
        str(path)
        for path in TESTS
        for node in tree_of(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        if not path.name.startswith("test_")
    ]
    assert lost == []


def test_the_fast_tier_imports_no_engine() -> None:
    """Tests of the API run on a scripted engine: seconds, on any machine."""
    fast = [p for p in TESTS if p.parent == ROOT / "tests" or p.is_relative_to(ROOT / "tests/api")]
    assert offenders(fast, ("torch", "vllm", "transformers", "peft")) == []


# Words that must not be in the repository.


def ignored_folders() -> set[str]:
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    return {line.strip("/") for line in lines if line.endswith("/")} | {".git"}


def texts() -> Iterator[tuple[str, str]]:
    """Every text file that git would track."""
    ignored = ignored_folders()
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in ignored]
        for name in files:
            path = Path(folder) / name
            if (
                path.suffix in (".safetensors", ".pyc", ".xz")
                or path == Path(__file__).resolve()
                or path.name == ".env"
            ):
                continue
            try:
                yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, FileNotFoundError):  # binary, or a file that a neighbour just removed
                continue


MACHINE_PATH = re.compile(r"(?<![\w./~$}>])/(?:work|root|home|Users)/\w")
REGISTRY = re.compile(
    r"pypi\.org|pythonhosted\.org|registry\.npmjs|crates\.io|proxy\.golang|/simple/?\b.*index-url|pypi\.tuna|mirrors\.aliyun"
)


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    found = [f"{name}: {match[0]}" for name, text in texts() for match in MACHINE_PATH.finditer(text)]
    assert found == []


def test_no_file_names_a_package_registry() -> None:
    """Where packages come from is the machine's business: pip's own settings say it."""
    found = [f"{name}: {match[0]}" for name, text in texts() for match in REGISTRY.finditer(text)]
    assert found == []


def test_the_words_above_would_be_found() -> None:
    assert MACHINE_PATH.search('open("/home/' + 'me/x")')
    assert MACHINE_PATH.search("see /" + "root/x")
    assert not MACHINE_PATH.search("https://host/home/page")
    assert len(dict(texts())) > 50
