"""The table of guidelines: every row well formed, no identifier twice, nothing made up from a mention."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.thinking.guidelines import TABLE, Guidelines, GuidelineTableError

KNOWN = Guidelines.load()
ADDRESSES = re.compile(
    r"https://doi\.org/10\.\d{4,9}/[\w.()/-]+"
    r"|https://www\.nice\.org\.uk/guidance/(?:ng|cg)\d{1,3}"
    r"|https://www\.who\.int/publications/i/item/97[89]\d{10}"
    r"|https://diabetesjournals\.org/care/issue/\d\d/Supplement_1"
    r"|https://goldcopd\.org/|https://ginasthma\.org/reports/"
)


def test_the_table_is_worth_having() -> None:
    assert len(KNOWN.documents) >= 40
    assert len({d.address for d in KNOWN.documents}) == len(KNOWN.documents)
    assert len({(d.title, d.year) for d in KNOWN.documents}) == len(KNOWN.documents)


@pytest.mark.parametrize("document", KNOWN.documents, ids=lambda d: d.title[:40])
def test_a_row_is_well_formed(document) -> None:
    assert ADDRESSES.fullmatch(document.address)
    if document.year is not None and re.search(r"(?:19|20)\d\d", document.title):
        assert str(document.year) in document.title
    if "diabetesjournals" in document.address:
        assert document.year == 1977 + int(document.address.split("/")[-2])
    assert all(topic == topic.lower() for topic in document.topics)


def test_the_isbn_of_a_who_address_has_its_check_digit() -> None:
    for address in [d.address for d in KNOWN.documents if "who.int" in d.address]:
        digits = [int(digit) for digit in address[-13:]]
        assert sum(d * (3 if n % 2 else 1) for n, d in enumerate(digits)) % 10 == 0, address


@pytest.mark.parametrize("document", KNOWN.documents, ids=lambda d: d.title[:40])
def test_a_document_is_found_by_its_own_title(document) -> None:
    found = KNOWN.resolve(document.title)
    assert found is not None
    assert found.address == document.address


@given(st.text(alphabet="0123456789 ESCADNIGOLW/高血压糖尿病指南中国《》年版abcdnov", max_size=30))
def test_a_year_in_a_mention_is_never_ignored(mention) -> None:
    found = KNOWN.resolve(mention)
    years = {int(year) for year in re.findall(r"(?<!\d)(?:19|20)\d\d(?!\d)", mention)}
    assert found is None or found.year is None or not years or "nice" in found.organisations or years == {found.year}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"address": "https://evil.example/"}, "address must begin"),
        ({"year": 3}, "year must be"),
        ({"organisations": []}, "needs a body"),
        ({"extra": 1}, "must be an object"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(change, message) -> None:
    row = json.loads(TABLE.read_text(encoding="utf-8").splitlines()[0])
    with pytest.raises(GuidelineTableError, match=f"line 1: .*{message}"):
        Guidelines.from_lines([json.dumps(row | change)])


def test_a_document_that_is_there_twice_is_refused() -> None:
    line = TABLE.read_text(encoding="utf-8").splitlines()[0]
    with pytest.raises(GuidelineTableError, match=r"line 2: .*already"):
        Guidelines.from_lines([line, line])


def test_a_table_that_is_gone_is_told(tmp_path) -> None:
    with pytest.raises(GuidelineTableError, match="Restore it"):
        Guidelines.load(tmp_path / "none.jsonl")
