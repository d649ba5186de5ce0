"""The signature of a webhook's message: Standard Webhooks 1.0.0 (standardwebhooks.com), symmetric."""

import base64
import binascii
import hmac
from hashlib import sha256


def secret_bytes(text: str) -> bytes:
    """Return the key in `whsec_` + base64. Raises `ValueError` for another form, or if it is not 24 to 64 bytes."""
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("must be whsec_ and base64") from None
    if not text.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise ValueError("must be whsec_ and the base64 of 24 to 64 random bytes")
    return key


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the header `webhook-signature`; `timestamp` is in seconds since the epoch."""
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.digest(key, signed, sha256)).decode()
