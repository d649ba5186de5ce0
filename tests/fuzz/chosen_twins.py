"""The compiled kernel finds and reads a few rows of a row group as pyarrow does, whichever of both wrote it."""

import random
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from processor.event_store.row_groups import SETTINGS
from processor.event_store.schema import SCHEMA
from server.explore.chosen_rows import table_of
from server.explore.segment_files import SegmentFile
from tests.fuzz.segment_twins import random_table, written

IDS = ("event_id", "trace_id", "user_id", "session_id", "model")


def compare(seed: int) -> Counter[str]:
    """Compare both ways of some rows. Raises `AssertionError`."""
    rng = random.Random(seed)
    tables = [random_table(rng) for _ in range(rng.randint(1, 2))]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.parquet"
        path.write_bytes(segment(rng, tables))
        counts = _read(rng, path, tables)
        damaged = bytearray(path.read_bytes())
        end = len(damaged) - 8 - int.from_bytes(damaged[-8:-4], "little")
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(4, end)] = rng.randrange(256)
        path.write_bytes(bytes(damaged))
        return counts + _read_damaged(rng, path, len(tables))


def segment(rng: random.Random, tables: list[Any]) -> bytes:
    """A file with these row groups, in one of the forms that segments have had."""
    packing = rng.choice(["none", "zstd"])
    if rng.random() < 0.5:
        return written(tables, rng.choice([40, 300, 65536]), is_packed=packing == "zstd")
    sink = pa.BufferOutputStream()
    writer = pq.ParquetWriter(
        sink,
        SCHEMA,
        version="2.6",
        data_page_size=rng.choice([1, 200, 65536]),
        write_batch_size=rng.choice([1, 7, 1024]),
        dictionary_pagesize_limit=rng.choice([10, 1 << 20]),
        compression=packing,
        use_dictionary=[*SETTINGS.dictionaries, *rng.sample(["trace_id", "latency_ms", "cost_usd"], 2)],
        column_encoding=dict.fromkeys(SETTINGS.deltas, "DELTA_BINARY_PACKED"),
    )
    for table in tables:
        writer.write_table(table.cast(SCHEMA))
    writer.close()
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _read(rng: random.Random, path: Path, tables: Iterable[Any]) -> Counter[str]:
    counts: Counter[str] = Counter()
    opened = SegmentFile(path).opened()
    for group, each in enumerate(tables):
        table = each.cast(SCHEMA)
        rows = some_rows(rng, len(table))
        names = rng.sample(SCHEMA.names, rng.choice([1, 5, len(SCHEMA.names)]))
        values = opened.values(group, names, rows)
        assert values is not None, "the kernel reads all that the store writes"
        found = table_of(names, values)
        found.validate(full=True)
        expected = table.select(names).take(pa.array(rows)).combine_chunks()
        assert found.equals(expected), [name for name in names if not found[name].equals(expected[name])]
        assert opened.take(group, names, rows).equals(expected)
        counts["rows read"] += len(rows)
        for name in IDS:
            texts = table[name].to_pylist()
            wanted = {*rng.choices(texts, k=rng.choice([1, 3, 40])), "u1", rng.choice(["", "x", "none of them"])} - {
                None
            }
            mine = opened._chosen.find(group, name, wanted)  # noqa: SLF001 - `find` itself may ask pyarrow
            assert mine is not None
            assert mine.tolist() == [row for row, text in enumerate(texts) if text in wanted]
            counts["texts found"] += len(mine)
    opened.close()
    return counts


def some_rows(rng: random.Random, rows: int) -> Any:
    """The numbers of some of so many rows."""
    return np.array(sorted(rng.sample(range(rows), rng.choice([1, min(rows, 5), rows]))), np.int64)


def _read_damaged(rng: random.Random, path: Path, groups: int) -> Counter[str]:
    """What is damaged is left to pyarrow, which is not asked here, or has values like any others."""
    counts: Counter[str] = Counter()
    opened = SegmentFile(path).opened()
    for group in range(groups):
        rows = some_rows(rng, opened._footer.row_group(group).num_rows)  # noqa: SLF001 - a part of the test
        for name in SCHEMA.names:
            values = opened.values(group, [name], rows)
            counts["damaged columns left" if values is None else "columns read"] += 1
            assert values is None or len(values[0]) == len(rows)
        for name in IDS:
            found = opened._chosen.find(group, name, ["u1", "trace-1"])  # noqa: SLF001
            assert found is None or ((found >= 0) & (found < opened._footer.row_group(group).num_rows)).all()  # noqa: SLF001
    opened.close()
    return counts
