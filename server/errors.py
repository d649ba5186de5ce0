"""Why a request is refused. No status code here: `status.py` has the one table of them."""

from collections.abc import Sequence
from typing import Any, Final, Literal

from msgspec import Struct

from processor.core.events.event import Code

Reason = Literal[
    "bad_request",
    "bad_batch",
    "unauthenticated",
    "forbidden",
    "not_found",
    "conflict",
    "too_large",
    "unsupported_type",
    "unsupported_encoding",
    "rate_limited",
    "quota_exceeded",
    "unavailable",
    "not_yet_visible",
]

RETRYABLE: Final[frozenset[Reason]] = frozenset({"rate_limited", "quota_exceeded", "unavailable", "not_yet_visible"})
"""The same request may succeed later; the others are permanent."""


class Rejection(Struct, frozen=True):
    """One event that was not taken; the JSON form is the contract's `rejected[]` item."""

    line: int
    """Counts from 1 in the request as sent."""
    event_id: str | None
    field: str | None
    code: Code
    message: str


class Refused(Exception):
    """The whole request is refused and nothing of it was taken.

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
