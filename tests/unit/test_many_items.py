"""Events with more items than the kernel takes are read a few at a time, and are the same rows; and they end a cut."""

from uuid import UUID

import numpy as np
import pytest

from processor.core.events import codec, message
from processor.core.events.message import build_blocks
from processor.core.events.ndjson import Lines
from processor.core.events.source import Source
from processor.event_store import event_values, rows, segment_table
from processor.event_store.rows import MessageRows
from tests.support.events import make_event, to_json_line
from tests.support.tables import NOON


def read(count: int, items: int) -> MessageRows:
    lines = [
        to_json_line(
            make_event(
                event_id=str(UUID(int=number, version=4)),
                tools_used=[f"t{place}" for place in range(items + number)],
                eval_scores={f"s{place}": place / 4 for place in range(items)},
                tags=None if number % 2 else {"team": "search"},
            )
        )
        for number in range(count)
    ]
    found = codec.decode("json", Lines(b"\n".join(lines), count), "partial", NOON)
    source = Source("default", "default", "key", NOON, "json", "partial")
    block = build_blocks(source, found.columns, 1)[0]
    decoded = message.decode(message.encode([block]), packed_users=True)
    return rows.rows_of(decoded, 0, 7, np.arange(count) != 3)


def test_many_items_are_packed_and_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 MiB of scores took 250 MiB as objects."""
    expected = read(12, 100)
    assert expected.by_twin.all()
    assert not any(each.packed for each in expected.values.collections.values())
    monkeypatch.setattr(rows, "TWIN_BYTES", 6000)
    monkeypatch.setattr(event_values, "MANY", 150)
    found = read(12, 100)
    packed = {name: len(each.packed) for name, each in found.values.collections.items()}
    assert packed["tags"] == 0
    assert min(packed["tools_used"], packed["eval_scores"]) > 1
    assert segment_table.table_of([found]).equals(segment_table.table_of([expected]))
    assert segment_table.table_of([found, read(2, 1), expected]).num_rows == 24
    assert found.size == expected.size + rows.ITEM_BYTES * found.values.packed_items > expected.size
