"""Signatures after the specification Standard Webhooks 1.0: `webhook-id`, `webhook-timestamp`, `webhook-signature`.

What is signed is the id, the second of this attempt and the body, byte for byte. While a secret is being replaced there
are two signatures, one after the other, and a receiver that knows either of them is content.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence

from outrider.core.errors import InvalidArguments

PREFIX = "whsec_"
SHORTEST, LONGEST = 24, 64
"""How many bytes a secret has."""


def new_secret() -> str:
    """A secret that nobody knows yet."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def key_of(secret: object) -> bytes:
    """The key that a secret says. Raises InvalidArguments, which does not repeat it."""
    try:
        if not isinstance(secret, str) or not secret.startswith(PREFIX):
            raise ValueError
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
        if not SHORTEST <= len(key) <= LONGEST:
            raise ValueError
    except (ValueError, binascii.Error):
        raise InvalidArguments(
            f"a secret is {PREFIX} and {SHORTEST} to {LONGEST} random bytes in base64; leave it out for a new one"
        ) from None
    return key


def headers_of(keys: Sequence[bytes], id: str, second: int, body: bytes) -> dict[str, str]:
    """The headers that prove a body to be ours, to whoever knows one of the keys."""
    said = f"{id}.{second}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key, said, hashlib.sha256)).decode() for key in keys)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(second),
        "webhook-signature": " ".join(f"v1,{each}" for each in signatures),
    }
