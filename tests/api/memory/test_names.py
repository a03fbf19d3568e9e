"""Ids, metadata, TTLs and tenants."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.memory.errors import BadMetadata, BadSessionId, BadTtl, MetadataTooLarge
from services.api.memory.names import check_metadata, check_session_id, check_ttl
from services.api.memory.tenancy import ANONYMOUS, cache_salt, tenant_of

ALLOWED = string.ascii_letters + string.digits + "._:-"


@given(st.text(alphabet=ALLOWED, min_size=1, max_size=128).filter(lambda s: s not in (".", "..")))
def test_ids_of_these_characters_are_taken(session_id: str) -> None:
    assert check_session_id(session_id) == session_id


@given(st.text(min_size=1, max_size=20).filter(lambda s: set(s) - set(ALLOWED)))
def test_ids_with_any_other_are_refused(session_id: str) -> None:
    with pytest.raises(BadSessionId):
        check_session_id(session_id)


@pytest.mark.parametrize("bad", ["", "a" * 129, "a/b", "..", ".", "a\n", "病人", 7, None])
def test_ids_that_are_refused(bad: object) -> None:
    with pytest.raises(BadSessionId):
        check_session_id(bad)


def test_metadata_has_a_size_and_a_form() -> None:
    assert check_metadata(None) == "{}"
    assert check_metadata({"a": "x" * (16 * 1024 - 9)})
    with pytest.raises(MetadataTooLarge):
        check_metadata({"a": "x" * (16 * 1024 - 8)})
    with pytest.raises(MetadataTooLarge):
        check_metadata({"a": "药" * 10_000_000})
    for bad in ([1], "text", {"a": float("nan")}, {"a": object()}, {("a",): 1}):
        with pytest.raises(BadMetadata):
            check_metadata(bad)  # type: ignore[arg-type]


def test_ttls() -> None:
    assert check_ttl(None) is None
    assert check_ttl(60) == 60.0
    for bad in (0, -1, 0.5, 1e12, float("nan"), float("inf"), True, "60"):
        with pytest.raises(BadTtl):
            check_ttl(bad)  # type: ignore[arg-type]


@given(st.text(min_size=1), st.text(min_size=1))
def test_tenants_are_told_apart_and_tell_nothing(a: str, b: str) -> None:
    assert (tenant_of(a) == tenant_of(b)) == (a == b)
    assert len(a) < 8 or a not in tenant_of(a)
    assert len(tenant_of(a)) == 32
    assert tenant_of(a) != ANONYMOUS == tenant_of(None) == tenant_of("")


def test_cache_salts() -> None:
    a, b = cache_salt(tenant_of("a")), cache_salt(tenant_of("b"))
    assert a != b
    assert a != cache_salt(tenant_of("a"), b"secret")
    assert len(a) == 64
    assert set(a) <= set("0123456789abcdef")
