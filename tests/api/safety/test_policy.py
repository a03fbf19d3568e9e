"""The policy's files: what is refused and why, the shipped one, and its replacement while requests run."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from services.api.safety.policy import FOLDER, PolicyError, read_policy
from services.api.safety.store import PolicyStore

TERM = """
group: claims
passes: [negated]
terms:
  - id: cures
    any: [包治百病]
    match: [我们包治百病]
    no_match: [不包治百病]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("policy.yaml", "cues.yaml"):
        shutil.copy(FOLDER / name, tmp_path / name)
    (tmp_path / "claims.yaml").write_text(TERM)
    return tmp_path


def test_the_shipped_policy_passes_its_own_cases() -> None:
    policy = read_policy()
    assert policy.cases >= 2 * len(policy.terms) > 0
    assert policy.fallback.zh == "根据您的描述,存在需要紧急医学评估的风险,请立即前往医院急诊科就诊。"
    assert policy.label.startswith(policy.version)


def test_the_digest_is_of_every_byte(folder: Path) -> None:
    before = read_policy(folder).digest
    assert read_policy(folder).digest == before
    (folder / "claims.yaml").write_text(TERM + "# a comment\n")
    assert read_policy(folder).digest != before


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("claims.yaml", "terms: [", "not YAML"),
        ("claims.yaml", TERM.replace("包治百病]", "(包治百病]"), "does not compile"),
        ("claims.yaml", TERM.replace("    match: [我们包治百病]\n", ""), "match: Field required"),
        ("claims.yaml", TERM.replace("我们包治百病", "没有这个词"), "misses '没有这个词'"),
        ("claims.yaml", TERM.replace("不包治百病", "包治百病"), "must not find"),
        ("claims.yaml", TERM.replace("[negated]", "[nonsense]"), "which no cue gives"),
        ("claims.yaml", TERM.replace("包治百病]", "'{nowhere}']", 1), "no word list 'nowhere'"),
        ("claims.yaml", TERM.replace("group: claims\n", ""), "has no group"),
        ("claims.yaml", TERM + "extra: 1\n", "extra"),
        ("more.yaml", TERM, "there twice"),
        ("policy.yaml", "version: '1'\n", "fallback"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(folder: Path, name: str, text: str, wanted: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(PolicyError) as caught:
        read_policy(folder)
    assert wanted in str(caught.value)


def test_a_folder_without_a_policy(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"policy\.yaml"):
        read_policy(tmp_path)


async def test_a_changed_file_is_taken_up_and_a_broken_one_is_not(folder: Path) -> None:
    results: list[str] = []
    store = PolicyStore("default", folder, results.append)
    first = store.current
    assert first is not None
    watching = asyncio.create_task(store.run(0.01))
    try:
        (folder / "claims.yaml").write_text("terms: [")
        await _until(results, "refused")
        assert store.current is first
        (folder / "claims.yaml").write_text(TERM + "# newer\n")
        await _until(results, "loaded")
        assert store.current is not None
        assert store.current.label != first.label
    finally:
        watching.cancel()


async def _until(results: list[str], wanted: str) -> None:
    async with asyncio.timeout(10):
        while wanted not in results:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0.01)


def test_profiles() -> None:
    assert PolicyStore("off").current is None
    seed = PolicyStore("seed").current
    assert seed is not None
    assert seed.label == "seed"
