"""The one real server of the run."""

from __future__ import annotations

import pytest

from tests.server import shared


@pytest.fixture(scope="session")
def url(pytestconfig: pytest.Config) -> str:
    return f"{shared(pytestconfig).url}/v1"
