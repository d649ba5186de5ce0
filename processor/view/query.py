"""Queries of a list of users: range, filters, order and page."""

from base64 import urlsafe_b64encode
from typing import Final

import msgspec
from msgspec import Struct

from processor.core.tables.row_sums import RowSums

SORTS: Final = {
    "cost_usd": "cost",
    "requests": "requests",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "last_seen": "last_seen",
}
"""The name of an order -> the member of `RowSums` by which users are sorted."""


DEFAULT_SORT: Final = "cost_usd"


Place = tuple[int, str]
"""The end of a page: the last value and user. "" is the user of unattributed events, which comes first on a tie."""


def sorting_value(sorted_by: str, sums: RowSums) -> int:
    """Return a member of a user's sums by its name."""
    value: int = getattr(sums, sorted_by)
    return value


class Range(Struct, frozen=True):
    """UTC days since the epoch, from `start` to before `end`; None: no bound. It may be empty."""

    start: int | None
    end: int | None

    @property
    def is_all_time(self) -> bool:
        return self.start is None and self.end is None

    def is_since(self, day: int, last: int) -> bool:
        """Return True if, of the days up to `last`, it contains exactly those from `day` on."""
        return self.start == day and (self.end is None or self.end > last)

    def __contains__(self, day: int) -> bool:
        return (self.start is None or day >= self.start) and (self.end is None or day < self.end)


class UserQuery(Struct, frozen=True):
    """A query of users: which rows, in which order, which page."""

    project: str
    days: Range
    model: str | None
    environment: str | None
    unattributed: bool
    """Only the row of unattributed events."""
    sort: str
    limit: int
    after: Place | None
    binding: str
    """A digest of project, order and filters, for the cursor."""

    @property
    def is_filtered(self) -> bool:
        return not (self.days.is_all_time and self.model is None and self.environment is None)

    @property
    def sorted_by(self) -> str:
        """The member of `RowSums` that the users are sorted by."""
        return SORTS[self.sort]

    def value_of(self, sums: RowSums) -> int:
        """Return the value by which a user is sorted."""
        return sorting_value(self.sorted_by, sums)

    def cursor(self, place: Place) -> str:
        """Return the cursor of the page after `place`: opaque, of URL-safe characters."""
        return urlsafe_b64encode(msgspec.json.encode((self.binding, *place))).decode().rstrip("=")
