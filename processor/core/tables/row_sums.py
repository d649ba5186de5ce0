"""The exact sums of a row, by name, and their layout in a record.

Sums are Python integers without a bound. In a record of 72 bytes (`row_dtype.record`), of which there are millions,
counts have 32 bits and everything else 64; what does not fit is kept beside the records.
"""

from typing import Final

from msgspec import Struct


class Totals(Struct, frozen=True, gc=False):
    """Sums that can be added and subtracted."""

    requests: int = 0
    """Unique events."""
    errors: int = 0
    """Those with a status of `fields.ERRORS`."""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost: int = 0
    """Picodollars."""
    unpriced: int = 0
    """Events without a cost."""

    def plus(self, other: "Totals") -> "Totals":
        """The sum of two."""
        return Totals(
            self.requests + other.requests,
            self.errors + other.errors,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.cost + other.cost,
            self.unpriced + other.unpriced,
        )

    def minus(self, other: "Totals") -> "Totals":
        """What is left without another."""
        return Totals(
            self.requests - other.requests,
            self.errors - other.errors,
            self.input_tokens - other.input_tokens,
            self.output_tokens - other.output_tokens,
            self.cached_tokens - other.cached_tokens,
            self.cost - other.cost,
            self.unpriced - other.unpriced,
        )


class RowSums(Totals, frozen=True, gc=False):
    """The sums and times of a row, or of several rows together, in the order of the changelog."""

    first_seen: int = 0
    """Microseconds since the epoch, of the events' own times; 0 if there are no requests."""
    last_seen: int = 0

    def totals(self) -> Totals:
        """Without the times."""
        return Totals(
            self.requests,
            self.errors,
            self.input_tokens,
            self.output_tokens,
            self.cached_tokens,
            self.cost,
            self.unpriced,
        )

    def merge(self, other: "RowSums") -> "RowSums":
        """What two rows say together. The times of one without requests mean nothing."""
        first, last = self.first_seen, self.last_seen
        if not self.requests:
            first, last = other.first_seen, other.last_seen
        elif other.requests:
            first, last = min(first, other.first_seen), max(last, other.last_seen)
        if not self.requests + other.requests:
            first = last = 0
        return RowSums(
            self.requests + other.requests,
            self.errors + other.errors,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.cost + other.cost,
            self.unpriced + other.unpriced,
            first,
            last,
        )


NO_SUMS: Final = RowSums()

TOTALS: Final = Totals.__struct_fields__
SUMS: Final = RowSums.__struct_fields__

COUNTS: Final = ("requests", "errors", "unpriced")
"""The sums that have 32 bits in a record, without a sign."""
AMOUNTS: Final = tuple(name for name in TOTALS if name not in COUNTS)
"""The other totals, which lie side by side in a record."""
TIMES: Final = tuple(name for name in SUMS if name not in TOTALS)
