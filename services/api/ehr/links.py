"""Short-lived signed links to a case's page: who has one may read that case until it expires, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time


class Links:
    """Signs and checks. Without a configured secret, links hold for this process alone."""

    def __init__(self, secret: str, ttl_s: float) -> None:
        self._secret = hashlib.sha256(b"case link\0" + (secret.encode() or secrets.token_bytes(32))).digest()
        self._ttl_s = ttl_s

    def token(self, case_id: str) -> str:
        """`EXPIRY.SIGNATURE`, for the query of the case's page."""
        expires = int(time.time() + self._ttl_s)
        return f"{expires}.{self._sign(case_id, expires)}"

    def is_valid(self, case_id: str, token: str) -> bool:
        expires, _, signature = token.partition(".")
        if not (expires.isascii() and expires.isdigit() and len(expires) <= 12 and signature.isascii()):
            return False
        fits = hmac.compare_digest(signature, self._sign(case_id, int(expires)))
        return fits and int(expires) >= time.time()

    def _sign(self, case_id: str, expires: int) -> str:
        digest = hmac.new(self._secret, f"{case_id}\0{expires}".encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
