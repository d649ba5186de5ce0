"""The rows of a message's events: what intake has decided and what its events say, as far as they are kept.

What intake has decided (time, tokens, cost and where it is from) is taken from the message's columns, everything else
from the events' original bytes: by the compiled kernel where it runs and an event is plain (`compiled_values`), else in
Python (`event_values`). A row says what `message.events` says of its event.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from processor.core.events import message
from processor.core.events.columns import Rows
from processor.core.events.compiled_rows import Names, without_hours
from processor.core.events.fields import RULES
from processor.core.events.message import Message, MessageError
from processor.core.events.ndjson import size_of
from processor.core.events.source import Request, Source
from processor.event_store import compiled_values, event_values
from processor.event_store.compiled_values import Buffers
from processor.event_store.event_values import Values

TWIN_BYTES: Final = 1 << 20
"""Bytes of events that the twin reads at a time, if they are large."""
ITEM_BYTES: Final = 16
"""Bytes that an item of a collection takes at least while a segment is written, however short it is in its event."""

I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]


class MessageRows(Struct, gc=False):
    """The events of one message that are kept: what its columns say, and the other values."""

    rows: Rows
    users: Sequence[str | None]
    names: list[Names]
    """Of which there are few."""
    named: I64
    """Those of each row."""
    cost_sources: list[str]
    projects: list[str]
    """Of each request."""
    homes: I64
    """The request of each row."""
    arrivals: I64
    places: I64
    """Where each row stands in its message."""
    partition: int
    offset: int
    cells: list[Buffers]
    """Other values of the rows that the kernel has read, in their order."""
    values: Values
    """Those of the rows that its twin has read, in their order."""
    by_twin: Mask
    """Which rows these are."""
    size: int
    """Bytes of all events of the message as they were sent, not packed; more where they have many items."""

    def __len__(self) -> int:
        return len(self.rows)


def rows_of(found: Message, partition: int, offset: int, kept: Mask) -> MessageRows:
    """Return the kept events of the message at `offset`. Raises `MessageError` if its bytes cannot be read."""
    reading = _Reading(kept)
    try:
        reading.read(found)
    except MessageError:
        raise
    except ValueError as error:  # those of faults, too
        raise MessageError(f"event message with unreadable records: {error}") from None
    places = np.flatnonzero(kept)
    counts = [request.count for request in found.requests]
    arrivals = np.repeat(np.array([request.source.arrival for request in found.requests], np.int64), counts)
    rows = found.rows if len(places) == len(found.rows) else found.rows.take(places)
    names, codes = without_hours(found.dims)
    return MessageRows(
        rows,
        found.users,
        names,
        codes[rows["dim"]],
        found.cost_sources,
        [request.source.project for request in found.requests],
        np.repeat(np.arange(len(counts)), counts)[places],
        arrivals[places],
        places,
        partition,
        offset,
        reading.cells,
        reading.values,
        reading.by_twin[places],
        reading.size + ITEM_BYTES * reading.values.packed_items,
    )


class _Reading:
    """A message that is being read."""

    def __init__(self, kept: Mask) -> None:
        self.cells: list[Buffers] = []
        self.values = event_values.empty()
        self.by_twin = np.zeros(len(kept), np.bool_)
        self.size = 0
        self._kept = kept

    def read(self, found: Message) -> None:
        """Read the events that are kept. Requests that are read in the same way are read together."""
        start = 0
        every = zip(found.requests, message.records(found), strict=True)
        for way, group in groupby(every, lambda each: _way(each[0].source)):
            requests = list(group)
            self.size += sum(size_of(records) for _, records in requests)
            end = start + sum(request.count for request, _ in requests)
            if self._kept[start:end].any() and not (way is not None and self._compiled(requests, start, end)):
                self._by_twin(requests, start)
            start = end

    def _compiled(self, requests: Sequence[tuple[Request, Sequence[bytes]]], start: int, end: int) -> bool:
        """Read requests by the kernel, and by its twin what that gives up; False if it takes none of them."""
        source = requests[0][0].source
        kept = self._kept[start:end]
        taken = compiled_values.take(
            source.payload, [records for _, records in requests], kept, lenient=source.handling == "lenient"
        )
        if taken is None:
            return False
        self.cells.append(taken.buffers)
        if taken.given_up:
            given_up = np.zeros(end - start, np.bool_)
            given_up[taken.given_up] = True
            self.by_twin[start:end] = given_up
            first = 0
            for request, records in requests:
                places = np.flatnonzero(given_up[first : first + request.count]).tolist()
                if places:
                    self._add(request.source, [records[place] for place in places], [True] * len(places))
                first += request.count
        return True

    def _by_twin(self, requests: Iterable[tuple[Request, Sequence[bytes]]], start: int) -> None:
        for request, records in requests:
            end = start + request.count
            self.by_twin[start:end] = True
            if self._kept[start:end].any():
                self._add(request.source, records, self._kept[start:end].tolist())
            start = end

    def _add(self, source: Source, records: Sequence[bytes], kept: Sequence[bool]) -> None:
        """Add events: large ones a few at a time, of which all objects are in memory."""
        if size_of(records) <= TWIN_BYTES:
            event_values.add(self.values, source, records, kept)
            return
        start = size = 0
        for end, record in enumerate(records, start=1):
            size += len(record)
            if size > TWIN_BYTES or end == len(records):
                event_values.add(self.values, source, records[start:end], kept[start:end])
                self.values.pack()
                start, size = end, 0


def _way(source: Source) -> tuple[str, bool] | None:
    """Return what decides how the kernel reads a request; None: it does not."""
    return None if source.rules < RULES else (source.payload, source.handling == "lenient")
