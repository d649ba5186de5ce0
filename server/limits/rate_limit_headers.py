"""The header fields `RateLimit` and `RateLimit-Policy`: what a key has left.

Source of the form: draft-ietf-httpapi-ratelimit-headers-10, structured fields (RFC 9651): a list of quoted policy names
with their parameters; `q` quota, `w` window, `r` remaining, `t` seconds until that is available again. All numbers are
whole. The month has no `w`, as months differ in length.
"""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from processor.core.clock import SECOND

MAX_INTEGER: Final = 999_999_999_999_999
"""The largest number of a structured field."""


class Allowance(Struct, frozen=True):
    """One limit, and what is used of it."""

    name: str
    limit: int
    used: int
    resets_at: int
    """Microseconds since the epoch."""
    window: int | None = None
    """The length in seconds; None: it is not constant."""


def headers(allowances: Sequence[Allowance], now: int) -> dict[str, str]:
    """Both fields, of at least one limit."""
    return {
        "RateLimit-Policy": ", ".join(map(_policy, allowances)),
        "RateLimit": ", ".join(_state(each, now) for each in allowances),
    }


def _policy(allowance: Allowance) -> str:
    window = "" if allowance.window is None else f";w={allowance.window}"
    return f'"{allowance.name}";q={min(allowance.limit, MAX_INTEGER)}{window}'


def _state(allowance: Allowance, now: int) -> str:
    remaining = min(max(allowance.limit - allowance.used, 0), MAX_INTEGER)
    wait = max(-((now - allowance.resets_at) // SECOND), 0)
    return f'"{allowance.name}";r={remaining};t={wait}'
