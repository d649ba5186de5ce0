"""The compiled kernel reads the costs and the tags of segments that pyarrow and numpy read."""

import random
from collections import Counter
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from processor.core.kernel.loaded import kernel
from processor.event_store.schema import SCHEMA
from server.explore import column_codes, cost_column

EDGES: Final = (0, 1, 2**31, 2**62, 10**18, 2**63 - 1)
"""Costs in picodollars."""
NAMES: Final = ("team", "", "a", "ü" * 3)
TEXTS: Final = ("x", "", "blue", "ö")


def compare(seed: int) -> Counter[str]:
    """Compare both ways of one row group, and of one with some bytes that are others. Raises `AssertionError`."""
    rng = random.Random(seed)
    return _costs(rng) + _tags(rng)


def costs_written(costs: pa.Array, **settings: Any) -> tuple[Any, Any]:
    """Costs as the only row group of a file: the file and its footer."""
    table, sink = pa.table({cost_column.NAME: costs}), pa.BufferOutputStream()
    pq.write_table(table, sink, **{"use_dictionary": False, "version": "2.6", "store_schema": False, **settings})
    source = pa.BufferReader(sink.getvalue())
    return source, pq.read_metadata(source)


def costs_of(numbers: list[int | None]) -> pa.Array:
    """Costs in whole picodollars."""
    wide = np.array([[number or 0, 0] for number in numbers], "<i8").reshape(-1, 2)
    there = np.packbits([number is not None for number in numbers], bitorder="little")
    kind = SCHEMA.field(cost_column.NAME).type
    return pa.Array.from_buffers(kind, len(numbers), [pa.py_buffer(there), pa.py_buffer(wide)])


def _costs(rng: random.Random) -> Counter[str]:
    absent, size = rng.choice([0, 0.01, 0.5, 1]), rng.choice([1, 7, 8, 100, 3000])
    numbers = [None if rng.random() < absent else rng.choice([rng.randrange(10**12), *EDGES]) for _ in range(size)]
    costs = costs_of(numbers)
    settings = {"compression": rng.choice(["none", "zstd"]), "data_page_size": rng.choice([64, 1000, 65536])}
    source, footer = costs_written(costs, write_batch_size=rng.choice([16, 1024]), **settings)
    read = cost_column.read_costs(source, footer, 0, 0)
    assert read is not None, settings
    read.validate(full=True)
    assert read.equals(costs)
    assert read.null_count == costs.null_count
    # Whatever the bytes are, it is an answer or none.
    start, many = footer.row_group(0).column(0).data_page_offset, footer.row_group(0).column(0).total_compressed_size
    damaged = bytearray(_all_of(source))
    for _ in range(rng.randint(1, 4)):
        damaged[start + rng.randrange(min(many, rng.choice([40, many])))] = rng.randrange(256)
    counts = Counter({"costs read": len(costs)})
    try:
        found = cost_column.read_costs(pa.BufferReader(bytes(damaged)), footer, 0, 0)
    except (pa.ArrowException, OSError):
        return counts + Counter({"damaged costs refused": 1})
    if found is not None:
        found.validate()
        assert len(found) == len(costs)
    return counts + Counter({"damaged costs left" if found is None else "damaged costs read": 1})


def _all_of(source: Any) -> bytes:
    source.seek(0)
    found: bytes = source.read()
    return found


def _tags(rng: random.Random) -> Counter[str]:
    rows = [_tags_of_row(rng) for _ in range(rng.choice([1, 8, 100]))]
    tags = pa.array(rows, pa.map_(pa.string(), pa.string()))
    start = rng.randrange(len(rows))
    tags = tags.slice(start, rng.randint(1, len(rows) - start))
    keys, items = tags.keys.dictionary_encode(), tags.items.dictionary_encode()
    wanted = np.array([rng.random() < 0.4 for _ in keys.dictionary], np.bool_)
    if not len(keys):
        return Counter()
    absent = len(items.dictionary)
    arguments = (keys.indices, items.indices, wanted, absent)
    found = column_codes.compiled_places(tags, *arguments)
    assert found.tolist() == column_codes.places(tags, *arguments).tolist(), rows
    # Offsets and numbers that do not lie in the buffers are refused, others are an answer.
    offsets, names = (np.frombuffer(each.buffers()[1], np.int32).copy() for each in (tags, keys.indices))
    some = rng.choice([offsets, names])
    some[rng.randrange(len(some))] = rng.choice([-1, 0, 1, 1000, 2**31 - 1])
    there, numbers = items.indices.buffers()
    assert kernel is not None
    try:
        kernel.tag_places(offsets, names, numbers, there, tags.offset, len(tags), wanted.tobytes(), absent)
    except ValueError:
        return Counter({"tags read": len(tags), "damaged tags refused": 1})
    return Counter({"tags read": len(tags)})


def _tags_of_row(rng: random.Random) -> list[tuple[str, str | None]] | None:
    if rng.random() < 0.2:
        return None
    return [(rng.choice(NAMES), rng.choice([None, *TEXTS])) for _ in range(rng.choice([0, 1, 1, 2, 5]))]
