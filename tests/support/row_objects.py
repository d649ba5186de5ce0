"""Rows of hours and of latencies as objects, an event at a time: what the columns are compared with."""

from collections.abc import Sequence
from typing import Any

from processor.core.clock import HOUR
from processor.core.tables import table_rows
from processor.core.tables.apply import Tables
from processor.core.tables.row_sums import RowSums
from processor.core.tables.table_rows import Histogram, HourKey, Row, Sums
from tests.support.tables import Usage


class RowObjects:
    """One partition's."""

    def __init__(self, partition: int = 0) -> None:
        self._partition = partition
        self.hours: dict[HourKey, Sums] = {}
        self.latencies: dict[HourKey, Histogram] = {}

    def apply(self, offset: int, project: str, events: Sequence[Usage]) -> None:
        """Add the calls of the message at `offset`, no copies among them, to the rows that do not have it yet."""
        events = [event for event in events if not event.span]
        keys = [(project, event.at // HOUR, event.provider, event.model, event.environment) for event in events]
        hours = {key for key in keys if key not in self.hours or self.hours[key].offset < offset}
        latencies = {key for key in keys if key not in self.latencies or self.latencies[key].offset < offset}
        for key, event in zip(keys, events, strict=True):
            if key in hours:
                tokens = event.input_tokens, event.output_tokens, event.cached_tokens
                row = self.hours.setdefault(key, Sums(self._key("hour", key)))
                row.add(RowSums(1, int(event.error), *tokens, event.cost, int(event.unpriced), event.at, event.at))
                row.offset = offset
            if key in latencies and event.latency:
                found = self.latencies.setdefault(key, Histogram(self._key("latency", key)))
                found.counts[event.latency] = found.counts.get(event.latency, 0) + 1
                found.offset = offset

    def restore(self, key: bytes, value: bytes | None) -> None:
        """Read back a record, of whatever kind."""
        _, kind, parts = table_rows.decode_key(key)
        at: Any = parts
        if kind == "hour":
            self.hours.pop(at, None)
            if value is not None:
                self.hours[at] = Sums(key, *table_rows.decode_value(value))
        elif kind == "latency":
            self.latencies.pop(at, None)
            if value is not None:
                offset, *numbers = table_rows.decode_value(value)
                counts = dict(zip(numbers[::2], numbers[1::2], strict=True))
                self.latencies[at] = Histogram(key, offset, counts)

    def records(self) -> dict[bytes, bytes]:
        """Key and value of each row in the changelog."""
        return _encoded([*self.hours.values(), *self.latencies.values()])

    def _key(self, kind: str, key: HourKey) -> bytes:
        return table_rows.encode_key(self._partition, kind, *key)


def records_of(found: Tables) -> dict[bytes, bytes]:
    """The same of tables' rows of hours and of latencies."""
    return _encoded([row for kind in (found.hours, found.latencies) for _, row in kind.rows()])


def _encoded(rows: list[Row]) -> dict[bytes, bytes]:
    return {row.key: table_rows.encode_value(row) for row in rows}
