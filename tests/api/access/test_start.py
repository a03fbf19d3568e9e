"""What a start refuses, and how the server listens: keys beyond loopback, TLS, and proxies that are believed."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import json
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from services.api.__main__ import http_config
from services.api.settings import Settings, SettingsError, read_settings
from tests.fakes import ROOT


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.upper().startswith("MEDTHINK_") or n == "FORWARDED_ALLOW_IPS"]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "ward.example.org"])
def test_nobody_listens_beyond_loopback_without_keys_unless_told(host: str) -> None:
    with pytest.raises(SettingsError, match="--insecure") as refused:
        read_settings(host=host)
    assert "services.api.access create" in str(refused.value)
    for way in ({"insecure": True}, {"api_keys": "a"}, {"keys_file": "keys.json"}):
        assert read_settings(host=host, **way).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_on_loopback_no_key_is_needed(host: str) -> None:
    assert read_settings(host=host).keys == ()


BAD: list[Mapping[str, Any]] = [
    {"cors_origins": "*"},
    {"cors_origins": "https://a.example.org/path"},
    {"cors_origins": "a.example.org"},
    {"cors_origins": "https://*.example.org"},
    {"trusted_proxies": "*"},
    {"trusted_proxies": "proxy.example.org"},
    {"trusted_proxies": "10.0.0.1/8"},
    {"tls_cert": "cert.pem"},
    {"tls_key": "key.pem"},
    {"audit_required": True},
]


@pytest.mark.parametrize("given", BAD, ids=str)
def test_settings_that_would_open_more_than_meant_are_refused(given) -> None:
    with pytest.raises(ValidationError):
        Settings(**given)


def start(*arguments: str, **environment: str) -> list[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MEDTHINK_")}
    command = [sys.executable, "-m", "services.api", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    return [line["message"] for line in lines if line["level"] == "error"]


def test_the_refusal_is_one_clear_line() -> None:
    (line,) = start("--host", "0.0.0.0", "--port", "0")
    assert line.startswith("the server would listen on 0.0.0.0 and ask nobody for a key")


def test_a_secret_of_the_environment_is_never_shown() -> None:
    lines = start(MEDTHINK_PORT="eighty", MEDTHINK_API_KEYS="canary-key")
    assert len(lines) == 1
    assert "canary" not in lines[0]


async def no_more_headers_than_allowed(port: int) -> tuple[int, bytes]:
    """Sends a header that never ends; how many bytes it took until the server had enough, and what it said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-filler: ")
    sent = 0
    try:
        while sent < 8 * 1024 * 1024 and not reader.at_eof():
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536
            await asyncio.sleep(0)
        said = await reader.read()
    except ConnectionError:
        said = b""
    writer.close()
    return sent, said


@contextlib.asynccontextmanager
async def listening(given: Settings) -> AsyncIterator[int]:
    """The port of a server with these settings."""
    config = http_config(given, echo)
    config.lifespan = "off"
    config.loaded = False
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(10):
            while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def test_a_header_that_never_ends_is_ended() -> None:
    async with listening(Settings(port=0)) as port:
        async with asyncio.timeout(10):
            sent, _ = await no_more_headers_than_allowed(port)
        assert sent < 8 * 1024 * 1024
        async with httpx.AsyncClient() as client:
            for size in (10, 1_000_000, 10):  # large bodies on a connection that is kept are no headers
                answer = await client.post(f"http://127.0.0.1:{port}/", content=b"x" * size)
                assert answer.json() == ["127.0.0.1", "http"]


# TLS


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    signed = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    return cert_file, key_file


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with who asks, and by which scheme."""
    body = json.dumps([(scope.get("client") or ["-"])[0], scope.get("scheme")]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def test_a_certificate_makes_it_https(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    trusting = httpx.AsyncClient(verify=ssl.create_default_context(cafile=str(cert)))
    async with listening(Settings(port=0, tls_cert=str(cert), tls_key=str(key))) as port, trusting as client:
        assert (await client.get(f"https://127.0.0.1:{port}/")).json() == ["127.0.0.1", "https"]


def test_a_certificate_that_cannot_be_used_is_an_os_error(tmp_path: Path) -> None:
    cert, _ = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = certificate(tmp_path / "other")
    for key in (str(other), str(tmp_path / "nothing.pem")):
        with pytest.raises(OSError):  # noqa: PT011 - ssl and files have many words for it
            http_config(Settings(tls_cert=str(cert), tls_key=key), echo)


# Proxies

FORWARDED = {"x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "https"}


@pytest.mark.parametrize(
    ("trusted", "peer", "seen"),
    [
        ("", "127.0.0.1", ["127.0.0.1", "http"]),
        ("", "10.0.0.5", ["10.0.0.5", "http"]),
        ("10.0.0.5", "10.0.0.5", ["203.0.113.9", "https"]),
        ("10.0.0.0/24,192.0.2.1", "10.0.0.77", ["203.0.113.9", "https"]),
        ("10.0.0.0/24", "10.0.1.1", ["10.0.1.1", "http"]),
    ],
)
async def test_forwarded_headers_are_believed_from_trusted_proxies_alone(trusted, peer, seen, monkeypatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn's own variable opens nothing
    app = http_config(Settings(trusted_proxies=trusted), echo).loaded_app
    transport = httpx.ASGITransport(app=app, client=(peer, 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://medthink") as client:
        assert (await client.get("/", headers=FORWARDED)).json() == seen
