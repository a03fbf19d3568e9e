"""What the specification asks of every answer."""

from __future__ import annotations

import re
import uuid
from typing import Any

import httpx


def holes(found: Any, where: str = "") -> list[str]:
    """Places of null and of empty values, which the specification prohibits."""
    if found is None or found == "" or found == {} or found == []:
        return [where]
    if isinstance(found, dict):
        return [hole for key, inner in found.items() for hole in holes(inner, f"{where}.{key}")]
    if isinstance(found, list):
        return [hole for n, inner in enumerate(found) for hole in holes(inner, f"{where}[{n}]")]
    return []


def check_cards(response: httpx.Response) -> list[dict[str, Any]]:
    """Everything that every answer must keep to."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"cards"}  # and no systemActions
    cards: list[dict[str, Any]] = body["cards"]
    assert len(cards) <= 3
    assert holes(cards) == []
    for card in cards:
        assert 0 < len(card["summary"]) < 140
        assert "\n" not in card["summary"]
        assert card["indicator"] in ("info", "warning", "critical")
        assert card["source"]["label"]
        assert "AI" in card["detail"]
        assert not re.search(r"<[a-zA-Z/!]", card["detail"])
        assert uuid.UUID(card["uuid"])
        assert "suggestions" not in card
        assert "selectionBehavior" not in card
        assert all(reason["display"] and reason["code"] for reason in card["overrideReasons"])
        for link in card.get("links", ()):
            assert set(link) == {"label", "url", "type"}
            assert link["type"] == "absolute"
            assert link["url"].startswith("http")
    assert len({card["uuid"] for card in cards}) == len(cards)
    return cards


def check_outcome(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/fhir+json"
    body: dict[str, Any] = response.json()
    assert body["resourceType"] == "OperationOutcome"
    assert holes(body) == []
    assert all({"severity", "code"} <= set(issue) for issue in body["issue"])
    return body
