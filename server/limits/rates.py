"""Requests a minute of each key, counted by one process or by all API processes of this machine together."""

from typing import Protocol

from processor.core.believed_time import MAX_STEP
from processor.core.clock import MINUTE
from server.errors import Refused
from server.processes.shared_table import Busy, SharedTable


class RequestRates(Protocol):
    """Counts of requests by name. `at` is in microseconds since the epoch; minutes are aligned to the epoch."""

    def reserve(self, name: str, limit: int, at: int, count: int = 1) -> int:
        """Count requests, all or none: none if there were more than `limit` in this minute then. Return how many there
        were before."""
        ...

    def used(self, name: str, at: int) -> int:
        """Return the requests that were counted in this minute."""
        ...


class OwnRates:
    """`RequestRates` of one process."""

    def __init__(self) -> None:
        self._minute = 0
        self._requests: dict[str, int] = {}

    def reserve(self, name: str, limit: int, at: int, count: int = 1) -> int:
        """See `RequestRates.reserve`."""
        minute = at - at % MINUTE
        if minute != self._minute:
            self._minute = minute
            self._requests.clear()
        used = self._requests.get(name, 0)
        if used + count <= limit:
            self._requests[name] = used + count
        return used

    def used(self, name: str, at: int) -> int:
        """See `RequestRates.used`."""
        return self._requests.get(name, 0) if at - at % MINUTE == self._minute else 0


class SharedRates:
    """`RequestRates` of all processes that share the table: a word for each name, with its minute and its count."""

    def __init__(self, table: SharedTable) -> None:
        self._table = table

    def reserve(self, name: str, limit: int, at: int, count: int = 1) -> int:
        """See `RequestRates.reserve`. Raises `Refused`: unavailable."""
        key, minute = name.encode(), at // MINUTE
        try:
            with self._table:
                row = self._table.find(key)
                if row is None:
                    row = self._table.add(key, [minute << 32], (minute - 1) << 32)
                word = self._table.get(row, 0)
                if not _is_of(word, minute):
                    word = minute << 32
                used = word & 0xFFFF_FFFF
                if used + count <= limit:
                    self._table.put(row, 0, word + count)
                return used
        except Busy as busy:
            raise Refused("unavailable", f"The rate limit is not known now ({busy})", retry_after=1) from None

    def used(self, name: str, at: int) -> int:
        """See `RequestRates.used`."""
        try:
            with self._table:
                row = self._table.find(name.encode())
                word = 0 if row is None else self._table.get(row, 0)
        except Busy:
            return 0
        return word & 0xFFFF_FFFF if _is_of(word, at // MINUTE) else 0


def _is_of(word: int, minute: int) -> bool:
    """Return True if a count is of this minute, or of one a little later, by another process's clock.

    A count of a much later minute was made by a wrong clock; it is ignored, or the key would be refused until then.
    """
    return minute <= word >> 32 <= minute + MAX_STEP // MINUTE
