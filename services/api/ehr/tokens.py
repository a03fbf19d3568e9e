"""An EHR's JSON Web Token on each call: who calls, for us, now, and for the first time (CDS Hooks, "Trusting CDS Clients")."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt

from services.api.ehr.clients import Client
from services.api.ehr.jwks import Keys
from services.api.ehr.outcomes import HookError
from services.api.logs import fields

log = logging.getLogger(__name__)

ALGORITHMS: Final = ("ES384", "RS384")  # what the specification recommends; nothing symmetric, and never none
SKEW_S: Final = 60
LONGEST_S: Final = 3600  # a token that lives longer would have to be remembered longer
_MOST_TOKENS: Final = 200_000
_LONGEST_TOKEN: Final = 16 * 1024
_LEAST_RSA_BITS: Final = 2048


@dataclass(frozen=True, slots=True)
class Trusted:
    """What a token has proved."""

    issuer: str
    tenant: str
    jti: str


class Refused(Exception):
    """Why, in one word, for the log: the caller is told nothing."""


class Verifier:
    """Checks tokens. Remembers each until it expires, so that none is used twice in this process."""

    def __init__(self, clients: Mapping[str, Client], keys: Keys) -> None:
        self._clients = clients
        self._keys = keys
        self._used: dict[tuple[str, str], float] = {}

    async def verify(self, authorization: str, audience: Collection[str]) -> Trusted:
        """Raises `HookError` 401, without any detail, for whatever is wrong."""
        try:
            return await self._verify(authorization, audience)
        except Refused as reason:
            log.warning("token refused", extra=fields(reason=str(reason)))
            raise HookError(401) from None

    async def _verify(self, authorization: str, audience: Collection[str]) -> Trusted:
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > _LONGEST_TOKEN:
            raise Refused("absent")
        try:
            header = jwt.get_unverified_header(token)
            claimed = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, TypeError):
            raise Refused("malformed") from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS:
            raise Refused("algorithm")
        if str(header.get("typ", "JWT")).upper() != "JWT" or "crit" in header or not isinstance(kid, str):
            raise Refused("header")
        issuer = claimed.get("iss")
        client = self._clients.get(issuer) if isinstance(issuer, str) else None
        if client is None:
            raise Refused("issuer")
        if "jku" in header and header["jku"] != client.jwks_url:
            raise Refused("jku")
        key = await self._keys.find(client, kid, algorithm)
        if key is None:
            raise Refused("key")
        return self._use(client, self._claims(token, key, algorithm, audience, client))

    def _claims(
        self, token: str, key: Mapping[str, Any], algorithm: str, audience: Collection[str], client: Client
    ) -> Mapping[str, Any]:
        try:
            public = jwt.PyJWK.from_dict(dict(key), algorithm=algorithm)
            if getattr(public.key, "key_size", 0) < (384 if algorithm == "ES384" else _LEAST_RSA_BITS):
                raise Refused("key")
            claims: Mapping[str, Any] = jwt.decode(
                token,
                public,
                algorithms=[algorithm],
                audience=list(audience),
                issuer=client.issuer,
                leeway=SKEW_S,
                options={"require": ["iss", "aud", "exp", "iat", "jti"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise Refused(type(error).__name__) from None
        return claims

    def _use(self, client: Client, claims: Mapping[str, Any]) -> Trusted:
        jti, tenant, expires = claims["jti"], claims.get("tenant", ""), float(claims["exp"])
        if not isinstance(jti, str) or not 0 < len(jti) <= 256 or not isinstance(tenant, str) or len(tenant) > 256:
            raise Refused("claims")
        if client.tenants and tenant not in client.tenants:
            raise Refused("tenant")
        now = time.time()
        if expires > now + LONGEST_S + SKEW_S:
            raise Refused("lifetime")
        name = (client.issuer, jti)
        if self._used.get(name, 0.0) > now:
            raise Refused("replay")
        if len(self._used) >= _MOST_TOKENS:
            self._used = {known: end for known, end in self._used.items() if end > now}
            if len(self._used) >= _MOST_TOKENS:
                raise Refused("flood")
        self._used[name] = expires + SKEW_S
        return Trusted(client.issuer, tenant, jti)
