"""Who owns a session: a tenant is the digest of an API key, so that the key itself is stored nowhere."""

from __future__ import annotations

import hashlib
import hmac

ANONYMOUS = "anonymous"  # everybody, on a server that asks for no key


def tenant_of(api_key: str | None) -> str:
    """The tenant of an API key, 32 hexadecimal digits; without a key the anonymous one.

    The same key is the same tenant for ever, on every replica. Two keys are two tenants: who changes a key leaves its
    sessions behind.
    """
    if not api_key:
        return ANONYMOUS
    return _hmac(b"medthink tenant 1", api_key.encode("utf-8", "surrogatepass"))[:32]


def cache_salt(tenant: str, secret: bytes = b"") -> str:
    """vLLM's `cache_salt` of a tenant, 64 hexadecimal digits: no tenant can time what is in another's prefix cache.

    With a `secret` nobody who knows a tenant id can work out its salt; all replicas behind one router should share it.
    """
    return _hmac(b"medthink cache salt 1" + secret, tenant.encode())


def _hmac(key: bytes, message: bytes) -> str:
    return hmac.new(key, message, hashlib.sha256).hexdigest()
