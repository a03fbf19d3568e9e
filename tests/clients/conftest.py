"""The one real server of the run, for clients that people use."""

from __future__ import annotations

import pytest

from tests.server import Server, shared


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Server:
    return shared(pytestconfig)


@pytest.fixture(scope="session")
def url(server: Server) -> str:
    """What a client is given as its base URL."""
    return f"{server.url}/v1"
