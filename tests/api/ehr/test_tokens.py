"""An EHR's signed token on every call, and what is refused without a word."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from services.api.ehr import jwks
from services.api.ehr.clients import Client, ClientsError, read_clients
from services.api.ehr.hooks import SUMMARY
from services.api.ehr.jwks import Keys
from services.api.settings import Settings
from tests.api.ehr.conftest import Door
from tests.api.ehr.patients import view
from tests.running import Running

ISSUER, BASE = "https://ehr.example.org/fhir", "https://medthink.example.org"
EC_KEY = ec.generate_private_key(ec.SECP384R1())
OTHER_KEY = ec.generate_private_key(ec.SECP384R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)


def public(key: Any, kid: str, algorithm: str) -> dict[str, Any]:
    kind = jwt.algorithms.ECAlgorithm if algorithm == "ES384" else jwt.algorithms.RSAAlgorithm
    return json.loads(kind.to_jwk(key.public_key())) | {"kid": kid, "alg": algorithm, "use": "sig"}


JWKS = {"keys": [public(EC_KEY, "ec1", "ES384"), public(RSA_KEY, "rsa1", "RS384")]}


def claims(**fields: Any) -> dict[str, Any]:
    now = int(time.time())
    whole = {
        "iss": ISSUER,
        "aud": f"{BASE}/cds-services/{SUMMARY}",
        "iat": now,
        "exp": now + 300,
        "jti": str(uuid.uuid4()),
    }
    return {name: value for name, value in (whole | fields).items() if value is not None}


def token(key: Any = EC_KEY, algorithm: str = "ES384", headers: dict[str, Any] | None = None, **fields: Any) -> str:
    head = {"kid": "ec1" if algorithm == "ES384" else "rsa1"} | (headers or {})
    return jwt.encode(claims(**fields), key, algorithm, head)


@pytest.fixture
async def running(door: Door, tmp_path: Path) -> AsyncIterator[Running]:
    clients = tmp_path / "clients.json"
    clients.write_text(json.dumps({"clients": [{"iss": ISSUER, "jwks": JWKS}]}))
    async with door({"ehr_auth": "jwt", "ehr_clients": str(clients), "ehr_base_url": BASE}) as found:
        yield found


async def call(running: Running, signed: str | None, body: Any = None) -> httpx.Response:
    headers = {} if signed is None else {"authorization": f"Bearer {signed}"}
    return await running.client.post(f"/cds-services/{SUMMARY}", json=body or view(), headers=headers)


@pytest.mark.parametrize(
    "signed",
    [
        lambda: token(),
        lambda: token(RSA_KEY, "RS384"),
        lambda: token(aud=["https://other.example.org", f"{BASE}/cds-services/{SUMMARY}"]),
        lambda: token(aud=BASE),
        lambda: token(nbf=int(time.time()) - 300, sub="client-id", extra={"x": [1]}),  # as Epic sends them
        lambda: token(iat=int(time.time()) + 50, exp=int(time.time()) + 350),  # clocks differ
        lambda: token(iat=int(time.time()) - 350, exp=int(time.time()) - 50),
    ],
)
async def test_tokens_that_are_good(running: Running, signed: Any) -> None:
    assert (await call(running, signed())).status_code == 200


def unsigned() -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none', 'typ': 'JWT', 'kid': 'ec1'})}.{part(claims())}."


def symmetric() -> str:
    """The public key used as a secret: the classic confusion."""
    return jwt.encode(claims(), json.dumps(JWKS["keys"][0]) + "x" * 64, "HS384", {"kid": "ec1"})


@pytest.mark.parametrize(
    "signed",
    [
        lambda: None,
        lambda: "x",
        lambda: "a.b.c",
        unsigned,
        symmetric,
        lambda: token(OTHER_KEY),
        lambda: token()[:-6] + "AAAAAA",
        lambda: token(headers={"kid": "other"}),
        lambda: token(headers={"jku": "https://evil.example.org/jwks.json"}),
        lambda: token(headers={"crit": ["x"], "x": 1}),
        lambda: token(iss="https://evil.example.org"),
        lambda: token(iss=None),
        lambda: token(aud="https://other.example.org"),
        lambda: token(aud=f"{BASE}/cds-services/medthink-order-review"),
        lambda: token(aud=None),
        lambda: token(exp=int(time.time()) - 70),
        lambda: token(exp=None),
        lambda: token(exp=int(time.time()) + 90000),
        lambda: token(iat=None),
        lambda: token(iat=int(time.time()) + 120),
        lambda: token(nbf=int(time.time()) + 120),
        lambda: token(jti=None),
        lambda: token(jti="x" * 300),
    ],
)
async def test_tokens_that_are_refused(running: Running, signed: Any) -> None:
    response = await call(running, signed())
    assert response.status_code == 401
    assert response.json() == {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "login"}]}
    assert running.engine.asked == []


async def test_a_token_is_good_once(running: Running) -> None:
    signed = token()
    assert (await call(running, signed)).status_code == 200
    assert (await call(running, signed)).status_code == 401


async def test_discovery_and_feedback_ask_for_one_too(running: Running) -> None:
    assert (await running.client.get("/cds-services")).status_code == 401
    signed = {"authorization": f"Bearer {token(aud=f'{BASE}/cds-services')}"}
    assert (await running.client.get("/cds-services", headers=signed)).status_code == 200
    assert (await running.client.post(f"/cds-services/{SUMMARY}/feedback", json={})).status_code == 401


async def test_two_ehrs_never_share_a_run(door: Door, tmp_path: Path) -> None:
    clients = tmp_path / "clients.json"
    both = [{"iss": ISSUER, "jwks": JWKS}, {"iss": "https://two.example.org", "jwks": JWKS}]
    clients.write_text(json.dumps({"clients": both}))
    async with door({"ehr_auth": "jwt", "ehr_clients": str(clients), "ehr_base_url": BASE}) as running:
        body = view()
        first = await call(running, token(), body)
        second = await call(running, token(iss="https://two.example.org"), body)
        assert first.json()["cards"][0]["uuid"] != second.json()["cards"][0]["uuid"]
        assert len(running.engine.asked) == 2


# Keys from the network


class Address:
    """Stands in for an EHR's key server; counts what is asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.keys: list[dict[str, Any]] = [public(EC_KEY, "ec1", "ES384")]
        self.status = 200
        real = httpx.AsyncClient

        def client(**options: Any) -> httpx.AsyncClient:
            assert options["follow_redirects"] is False
            assert options["trust_env"] is False
            return real(**options, transport=httpx.MockTransport(self._answer))

        monkeypatch.setattr(jwks.httpx, "AsyncClient", client)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(str(request.url))
        if self.status == 302:
            return httpx.Response(302, headers={"location": "http://169.254.169.254/"})
        return httpx.Response(self.status, json={"keys": self.keys})


CLIENT = Client(ISSUER, "https://ehr.example.org/jwks.json", None)


async def test_keys_are_fetched_once_and_again_for_a_new_id(monkeypatch: pytest.MonkeyPatch) -> None:
    address, keys = Address(monkeypatch), Keys()
    for _ in range(5):
        assert await keys.find(CLIENT, "ec1", "ES384") is not None
    assert len(address.asked) == 1
    address.keys = [public(OTHER_KEY, "ec2", "ES384")]  # rotated
    assert await keys.find(CLIENT, "ec2", "ES384") is None  # asked a moment ago: not again for every unknown id
    assert len(address.asked) == 1
    monkeypatch.setattr(jwks, "AGAIN_S", 0.0)
    assert await keys.find(CLIENT, "ec2", "ES384") is not None
    assert len(address.asked) == 2
    assert await keys.find(CLIENT, "ec1", "ES384") is None  # what was taken back is trusted no more
    assert set(address.asked) == {CLIENT.jwks_url}


@pytest.mark.parametrize("status", [302, 404, 500])
async def test_an_address_that_fails_trusts_nobody_new(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    address, keys = Address(monkeypatch), Keys()
    address.status = status
    assert await keys.find(CLIENT, "ec1", "ES384") is None
    assert address.asked == [CLIENT.jwks_url]  # and no redirect is followed


async def test_known_keys_outlive_a_short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    address, keys = Address(monkeypatch), Keys()
    assert await keys.find(CLIENT, "ec1", "ES384") is not None
    address.status = 500
    monkeypatch.setattr(jwks, "KEPT_S", 0.0)
    monkeypatch.setattr(jwks, "AGAIN_S", 0.0)
    assert await keys.find(CLIENT, "ec1", "ES384") is not None
    monkeypatch.setattr(jwks, "STALE_S", 0.0)
    assert await keys.find(CLIENT, "ec1", "ES384") is None


async def test_nothing_that_a_caller_names_is_fetched(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fhirServer`, `jku` and pages of a Bundle are addresses of the caller's choosing."""
    address = Address(monkeypatch)
    body = view(
        fhirServer="http://169.254.169.254/latest",
        fhirAuthorization={
            "access_token": "x",
            "token_type": "Bearer",
            "expires_in": 300,
            "scope": "s",
            "subject": "c",
        },
    )
    body["prefetch"]["allergies"]["link"] = [{"relation": "next", "url": "http://169.254.169.254/next"}]
    del body["prefetch"]["conditions"]
    assert (await call(running, token(), body)).status_code == 200
    assert (await call(running, token(headers={"jku": "http://169.254.169.254/keys"}), body)).status_code == 401
    assert address.asked == []


# Settings


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"clients": [{}]}',
        '{"clients": [{"iss": "a"}]}',
        '{"clients": [{"iss": "a", "jwks_url": "http://ehr.example.org/k"}]}',
        '{"clients": [{"iss": "a", "jwks_url": "https://e/k"}, {"iss": "a", "jwks_url": "https://e/k"}]}',
        '{"clients": [{"iss": "a", "jwks": []}]}',
        '{"clients": [{"iss": "a", "jwks_url": "https://e/k", "tenants": "x"}]}',
    ],
)
def test_a_file_of_clients_that_cannot_be_used_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "clients.json"
    path.write_text(text)
    with pytest.raises(ClientsError, match="docs/ehr"):
        read_clients(path)


def test_calls_without_tokens_are_for_loopback_alone() -> None:
    with pytest.raises(ValueError, match="MEDTHINK_EHR_AUTH"):
        Settings(host="0.0.0.0", insecure=True, ehr_auth="off")
    with pytest.raises(ValueError, match="MEDTHINK_EHR_BASE_URL"):
        Settings(ehr_clients="clients.json")


async def test_without_clients_nobody_is_trusted(door: Door) -> None:
    async with door({"ehr_auth": "jwt"}) as running:
        assert (await call(running, token())).status_code == 401
