"""Teaches schemathesis the media type of ingest: text is sent as it is (SCHEMATHESIS_HOOKS names this file)."""

from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogateescape")
