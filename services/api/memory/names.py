"""What clients may call a session and attach to it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from services.api.memory.errors import BadIdempotencyKey, BadMetadata, BadSessionId, BadTtl, MetadataTooLarge

MOST_METADATA_BYTES = 16 * 1024
LONGEST_TTL_S = 10 * 366 * 24 * 3600
LONGEST_IDEMPOTENCY_KEY = 255

_SESSION_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")


def check_session_id(session_id: object) -> str:
    """The id as given; raises `BadSessionId`. `.` and `..` are no names: a URL would swallow them."""
    if not isinstance(session_id, str) or not _SESSION_ID.fullmatch(session_id) or session_id in (".", ".."):
        raise BadSessionId("a session id has 1 to 128 characters, letters, digits and . _ : - only: choose another one")
    return session_id


def check_metadata(metadata: Mapping[str, Any] | None) -> str:
    """Metadata as JSON text; raises `BadMetadata` and `MetadataTooLarge`."""
    if metadata is None:
        return "{}"
    if not isinstance(metadata, Mapping):
        raise BadMetadata("metadata must be a JSON object")
    try:
        text = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadMetadata("metadata must be a JSON object of plain JSON values") from error
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MOST_METADATA_BYTES:
        raise MetadataTooLarge(
            f"metadata has {size} bytes as JSON and may have {MOST_METADATA_BYTES}: keep large things in your own system "
            "and their ids here"
        )
    return text


def check_ttl(ttl_s: float | None) -> float | None:
    """Seconds that a session lives after its last turn, `None` for ever; raises `BadTtl`."""
    if ttl_s is None:
        return None
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not 1 <= ttl_s <= LONGEST_TTL_S:
        raise BadTtl(f"ttl_s must be between 1 and {LONGEST_TTL_S} seconds")
    return float(ttl_s)


def idempotency_digest(key: str) -> str:
    """What is stored of an Idempotency-Key; raises `BadIdempotencyKey`."""
    if not key.strip() or len(key) > LONGEST_IDEMPOTENCY_KEY:
        raise BadIdempotencyKey(f"Idempotency-Key has 1 to {LONGEST_IDEMPOTENCY_KEY} characters: send a UUID")
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
