"""Whatever the compiled kernel takes, the slow way takes with the same values; and with what it gives up, requests come
out of both the same, byte for byte, and so does what the event store keeps of them."""

import random
from collections import Counter
from typing import Final

import numpy as np

from processor.core.events import codec, compiled_rows, ndjson
from processor.core.events.columns import Columns
from processor.core.events.event import MAX_FUTURE, Handling
from processor.core.events.ndjson import SEPARATOR, Lines
from tests.fuzz import mutations, stored_values
from tests.fuzz.mutations import NOW
from tests.support import slow_way
from tests.support.pure import pure

SIZE: Final = 100
"""Events of a request."""
PAYLOADS: Final[tuple[codec.PayloadFormat, ...]] = ("json", "protobuf")
HANDLINGS: Final[tuple[Handling, ...]] = ("partial", "lenient", "strict")


def compare(number: int) -> Counter[str]:
    """Compare both ways on the requests that a number stands for; returns what was counted.

    Raises `AssertionError`, with the event, where they differ.
    """
    rng = random.Random(number)
    counts: Counter[str] = Counter()
    for payload in PAYLOADS:
        made = mutations.lines(rng, SIZE) if payload == "json" else mutations.messages(rng, SIZE)
        handling = rng.choice(HANDLINGS)
        counts[f"{payload} taken"] += _compare_each(payload, made, handling)
        counts[f"{payload} sent"] += len(made)
        _compare_all(payload, made, handling)
        counts += stored_values.compare(rng, payload, made, handling)
    _compare_lines_by_home(rng)
    return counts


def _compare_each(payload: codec.PayloadFormat, records: list[bytes], handling: Handling) -> int:
    """Each event that the kernel takes of a request; returns how many."""
    lenient = handling == "lenient"
    taken = compiled_rows.take(payload, records, NOW + MAX_FUTURE, lenient=lenient, beside=lenient)
    if taken is None:
        return 0
    places = sorted({*range(len(records))} - {*taken.given_up})
    for place in places:
        expected = slow_way.decode(payload, [records[place]], handling, NOW)
        assert not expected.faults, f"the kernel takes what is refused: {expected.faults[0][1]} {records[place]!r}"
        found = taken.columns.at(np.array([place]))
        assert _one(found) == _one(expected.columns), records[place]
    return len(places)


def _one(columns: Columns) -> tuple[object, ...]:
    row = columns.rows[0]
    return row.tobytes(), columns.users[row["user"]], columns.dims[row["dim"]]


def _compare_all(payload: codec.PayloadFormat, records: list[bytes], handling: Handling) -> None:
    """A whole request, as a list and as lines."""
    expected = slow_way.plain(slow_way.decode(payload, records, handling, NOW))
    assert slow_way.plain(codec.decode(payload, records, handling, NOW)) == expected
    if payload == "json":
        lines = Lines(SEPARATOR.join(records), len(records))
        assert slow_way.plain(codec.decode(payload, lines, handling, NOW)) == expected


def _compare_lines_by_home(rng: random.Random) -> None:
    """Lines of any bytes, apart by partition."""
    made = [rng.randbytes(rng.choice((0, 1, 9, 400))).replace(SEPARATOR, b"") for _ in range(rng.randrange(1, 60))]
    partitions = rng.choice((2, 6, 1024))
    homes = np.array([rng.randrange(partitions) for _ in made])
    lines = Lines(SEPARATOR.join(made), len(made))
    found = ndjson.by_home(lines, homes, partitions)
    with pure():
        expected = ndjson.by_home(lines, homes, partitions)
    assert [(list(each), len(each)) for each in found] == [(list(each), len(each)) for each in expected]
    for wrong in (homes[1:], np.append(homes, 0), homes - partitions, homes + partitions):
        try:
            ndjson.by_home(lines, wrong, partitions)
        except ValueError:
            continue
        raise AssertionError(f"{len(made)} lines for {len(wrong)} partitions")
