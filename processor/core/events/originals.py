"""Do a message's columns say what the original bytes beside them say?

A message keeps its events twice (`processor.core.events.message`): tables are made of the columns, people read the
bytes. The bytes are decoded again here, by what is a field in messages of their version and otherwise by today's rules,
which may take more than those of the day on which they were stored, and under `lenient` handling may read a field in
another way. So columns are compared only where no rule that may change has a say: for events that any handling takes as
they are. Of all others the id is compared.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from processor.core.events import codec, message
from processor.core.events.columns import Columns, Rows
from processor.core.events.message import Message, MessageError
from processor.core.events.source import Source

NO_FUTURE: Final = 2**62
"""An arrival, in microseconds, for which no timestamp lies in the future: that was checked at intake."""

COMPARED: Final = ("id", "digest", "at", "input", "output", "cached", "cost", "flags", "latency")


def differences(found: Message) -> Iterator[str]:
    """What the original bytes of a message say otherwise than its columns; nothing if they agree.

    Never raises: bytes that cannot be opened are a difference.
    """
    try:
        originals = message.records(found)
    except (MessageError, ValueError) as error:
        yield f"its original bytes cannot be opened: {error}"
        return
    for number, ((request, rows), records) in enumerate(zip(found.by_request(), originals, strict=True)):
        where = f"request {number}"
        if len(records) != len(rows):
            yield f"{where} has the original bytes of {len(records)} events, and columns of {len(rows)}"
        else:
            yield from (f"{where}, {what}" for what in _in_request(found, request.source, rows, records))


def _in_request(found: Message, source: Source, rows: Rows, records: Sequence[bytes]) -> Iterator[str]:
    plainly = codec.decode(source.payload, records, "partial", NO_FUTURE, rules=source.rules)
    plain = np.ones(len(records), np.bool_)
    plain[[place for place, _ in plainly.faults]] = False
    yield from _in_columns(found, source, rows, np.flatnonzero(plain), plainly.columns)
    for place in np.flatnonzero(~plain).tolist():
        again = codec.decode(source.payload, [records[place]], source.handling, NO_FUTURE, rules=source.rules)
        if again.faults:
            yield f"event {place}: its original bytes are no event: {again.faults[0][1]}"
        elif (again.columns.rows["id"][0] != rows["id"][place]).any():
            yield f"event {place}: its original bytes are those of another event"


def _in_columns(found: Message, source: Source, rows: Rows, places: NDArray[np.int64], again: Columns) -> Iterator[str]:
    """Compare the events at these places of a request's rows with what they are decoded to."""
    ours, theirs = rows[places], again.rows
    if source.handling == "lenient":  # which may have read such counts in another way
        other = theirs["cached"] > theirs["input"]
        for place in places[other & (ours["id"] != theirs["id"]).any(axis=1)].tolist():
            yield f"event {place}: its original bytes are those of another event"
        places, ours, theirs = places[~other], ours[~other], theirs[~other]
    for name in COMPARED:
        if name == "digest" and source.api == "otlp":
            continue  # there it is made of the span that was sent (`server.otlp`), of which these bytes are not all
        differs = ours[name] != theirs[name]
        if name == "id":
            differs = differs.any(axis=1)
        for place in places[differs].tolist():
            yield f"event {place}: {name} differs from its original bytes"
    for name, mine, other_names in (("user", found.users, again.users), ("dim", found.dims, again.dims)):
        pairs = zip(places.tolist(), ours[name].tolist(), theirs[name].tolist(), strict=True)
        for place, here, there in pairs:
            if mine[here] != other_names[there]:
                yield f"event {place}: {name} differs from its original bytes"
