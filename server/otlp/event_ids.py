"""The id of a span's event: the same for every copy of the span, whatever way it came."""

from hashlib import sha256


def hashed_before(project: str) -> bytes:
    """What is hashed before the ids of a project's spans."""
    return b"%b\0" % project.encode()


def event_id(project: str, trace_id: bytes, span_id: bytes) -> str:
    """The first 16 bytes of SHA-256(project in UTF-8, a zero byte, trace id, span id) as a UUID of version 4."""
    raw = bytearray(sha256(b"%b%b%b" % (hashed_before(project), trace_id, span_id)).digest()[:16])
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
