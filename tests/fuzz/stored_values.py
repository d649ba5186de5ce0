"""What the event store keeps of mutated events: the kernel's rows are those of its twin, value by value."""

import random
from collections import Counter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from processor.core.events import codec, message
from processor.core.events.event import Handling
from processor.core.events.message import Message
from processor.core.events.source import Source
from processor.event_store import event_values, rows, segment_table
from processor.event_store.rows import MessageRows
from tests.fuzz.mutations import NOW


def compare(rng: random.Random, payload: codec.PayloadFormat, records: list[bytes], handling: Handling) -> Counter[str]:
    """Compare both ways on the events of a request that intake takes; returns what was counted.

    Raises `AssertionError`, with the event, where they differ.
    """
    columns = codec.decode(payload, records, handling, NOW).columns
    if not len(columns):
        return Counter()
    found = message.opened(message.build_blocks(Source("o", "p", "k", NOW, payload, handling), columns, 1).values())
    kept = (
        np.ones(len(found), np.bool_)
        if rng.random() < 0.5
        else np.random.default_rng(rng.getrandbits(32)).random(len(found)) < rng.choice([0.1, 0.5, 0.9])
    )
    if not kept.any():
        return Counter()
    made = rows.rows_of(found, 0, 0, kept)
    expected = segment_table.table_of([by_twin(found, made, kept)])
    same = segment_table.table_of([made])
    assert same.schema == expected.schema
    if same.equals(expected):
        taken = len(made) - len(made.values)
        return Counter({f"{payload} kept": len(made), f"{payload} read": taken})
    for one, other in zip(_plain(same, payload), _plain(expected, payload), strict=True):
        assert one == other, f"{records[one['log_index']]!r}: {_difference(one, other)}"
    # Protobuf's maps have no order, so their entries may come in another one.
    assert payload == "protobuf", "the rows are equal, but not the columns"
    return Counter({f"{payload} kept": len(made), f"{payload} read": len(made) - len(made.values)})


def by_twin(found: Message, made: MessageRows, kept: NDArray[np.bool_]) -> MessageRows:
    """The same rows, read by the twin alone."""
    values, start = event_values.empty(), 0
    for request, records in zip(found.requests, message.records(found), strict=True):
        event_values.add(values, request.source, records, kept[start : start + request.count].tolist())
        start += request.count
    return msgspec.structs.replace(made, cells=[], values=values, by_twin=np.ones(len(made), np.bool_))


def _plain(table: Any, payload: codec.PayloadFormat) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table.to_pylist(maps_as_pydicts="strict" if payload == "protobuf" else None)
    for row in found:
        if row["extra"] is not None and payload == "protobuf":
            row["extra"] = msgspec.json.decode(row["extra"], type=dict[str, msgspec.Raw])
    return found


def _difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {one[name]!r} is not {other[name]!r}" for name in one if one[name] != other[name])
