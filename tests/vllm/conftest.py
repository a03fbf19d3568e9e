"""The one real server of the run, and ways to ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from tests.server import CHAT, DEMO, QUESTION, Server, body_of, data_frames, shared


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Server:
    return shared(pytestconfig)


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=180) as client:
        yield client


@pytest.fixture(scope="session")
def post(http: httpx.Client) -> Callable[..., httpx.Response]:
    """`post(max_tokens=4)`: a chat request's response, whatever its status."""
    return lambda **fields: http.post(CHAT, json=body_of(fields))


@pytest.fixture(scope="session")
def ask(post: Callable[..., httpx.Response]) -> Callable[..., dict[str, Any]]:
    """`ask("布洛芬", max_tokens=4)`: a whole completion, greedy unless it says otherwise."""

    def whole(question: str = QUESTION, **fields: Any) -> dict[str, Any]:
        response = post(question=question, **fields)
        assert response.status_code == 200, response.text
        completion: dict[str, Any] = response.json()
        return completion

    return whole


@pytest.fixture(scope="session")
def plain(ask: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The whole greedy reply to the question that most tests ask, with nothing set."""
    return ask()


@pytest.fixture(scope="session")
def stream(http: httpx.Client) -> Callable[..., list[dict[str, Any]]]:
    """The chunks of the same request, streamed; their end was checked."""

    def chunks(question: str = QUESTION, **fields: Any) -> list[dict[str, Any]]:
        body = body_of({"question": question, **fields}) | {"stream": True}
        with http.stream("POST", CHAT, json=body) as response:
            assert response.status_code == 200, response.read().decode()
            frames = list(data_frames(response.iter_lines()))
        assert frames.pop() == "[DONE]"
        found = [frame for frame in frames if isinstance(frame, dict)]
        assert len(found) == len(frames)
        assert not any("error" in frame for frame in found), found[-1]
        return found

    return chunks


@pytest.fixture(scope="session")
def token() -> Callable[[str], int]:
    """Id of a text that is one token."""
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))

    def id_of(text: str) -> int:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert len(ids) == 1, f"{text!r} is {len(ids)} tokens: choose another"
        return int(ids[0])

    return id_of
