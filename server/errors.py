"""Errors of requests: `Refused` for a whole request, `Rejection` for one event. `status.py` has their status codes."""

from collections.abc import Sequence
from typing import Any, Final, Literal

from msgspec import Struct

from processor.core.events.event import Code

Reason = Literal[
    "bad_request",
    "bad_batch",
    "range_too_wide",
    "too_deep",
    "unauthenticated",
    "forbidden",
    "not_found",
    "method_not_allowed",
    "conflict",
    "too_large",
    "unsupported_type",
    "unsupported_encoding",
    "query_too_heavy",
    "rate_limited",
    "quota_exceeded",
    "internal",
    "event_store_off",
    "unavailable",
    "disk_full",
    "queries_busy",
    "event_store_missing",
    "not_yet_visible",
]
"""The closed list of `reason` in error bodies, and in upper case of `ErrorInfo.reason` over gRPC.

Clients branch on it.
"""

RETRYABLE: Final[frozenset[Reason]] = frozenset(
    {
        "rate_limited",
        "quota_exceeded",
        "unavailable",
        "disk_full",
        "queries_busy",
        "event_store_missing",
        "not_yet_visible",
    }
)
"""Reasons for which the same request may succeed later; the others are permanent."""


class Rejection(Struct, frozen=True):
    """One event that was rejected; its JSON form is an item of `rejected` in the answers."""

    line: int
    """Counts from 1 in the request as sent."""
    event_id: str | None
    field: str | None
    code: Code
    message: str


class Refused(Exception):
    """A request that is refused as a whole: nothing of it was stored or charged.

    `retry_after` is in whole seconds, for retryable reasons only; `details` are further members of the error body.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        rejected: Sequence[Rejection] = (),
        retry_after: int | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        self.reason: Reason = reason
        self.message = message
        self.rejected = tuple(rejected)
        self.retry_after = retry_after
        self.details = details or {}
        super().__init__(message)

    @property
    def retryable(self) -> bool:
        """True if the same request may succeed later."""
        return self.reason in RETRYABLE
