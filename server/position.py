"""`x-ingest-position`: the position of a batch in the log, as an opaque token of URL-safe characters."""

import re
from collections.abc import Mapping

from server.errors import Refused

Position = Mapping[int, int]
"""partition -> offset of the message that contains the batch's events; empty: every table contains it."""

_FORM = re.compile(r"([0-9a-f]{1,16})((?:_[0-9]{1,5}-[0-9]{1,13}){0,1024})").fullmatch


def encode(identity: str, position: Position) -> str:
    """Return the token for a position in the log with this `identity` (hex)."""
    return identity + "".join(f"_{partition}-{offset}" for partition, offset in sorted(position.items()))


def decode(identity: str, token: str) -> dict[int, int]:
    """Return the position of a token. Raises `Refused` for anything that `encode` did not make for this log."""
    match = _FORM(token)
    if match is None or match[1] != identity:
        raise Refused("bad_request", "not an ingest position of this server")
    pairs = (pair.split("-") for pair in match[2].split("_")[1:])
    return {int(partition): int(offset) for partition, offset in pairs}
