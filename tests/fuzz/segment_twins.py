"""The compiled kernel writes, takes, sorts and adds up the rows of segments as pyarrow and numpy do."""

import io
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from processor.core.kernel.loaded import kernel
from processor.event_store import id_index, merge, row_sizes, schema, segment_file, segment_sums, user_counts
from processor.event_store.compiled_parquet import CompiledParquet
from processor.event_store.compiled_take import TakenBatch, Taking
from processor.event_store.row_groups import SETTINGS, PyarrowParquet
from processor.event_store.schema import FEW_VALUES, SCHEMA, WRITTEN
from tests.support.event_store import random_row, table_of


def compare(seed: int) -> Counter[str]:
    """Compare both ways of some rows. Raises `AssertionError`."""
    rng = random.Random(seed)
    tables = [random_table(rng) for _ in range(rng.randint(1, 4))]
    found = _files(rng, tables) + _taken(rng, tables) + _sums(rng, tables[0]) + _entries(rng)
    return found + _sizes(rng, tables[0]) + _users(rng, tables[0]) + _damaged(rng, tables[0])


def random_table(rng: random.Random) -> Any:
    """A table of `WRITTEN` in one chunk a column, perhaps a part of a larger one, with what Arrow allows of lists."""
    overrides = {name: None for name in ("user_id", "extra", "tags", "ttft_ms") if rng.random() < 0.2}
    rows = [
        random_row(rng, log_partition=0, log_offset=rng.randrange(2**40), log_index=place, **overrides)
        for place in range(rng.choice([1, 7, 8, 9, 100, 300]))
    ]
    for row in rows:
        if rng.random() < 0.1:
            row["tools_used"] = rng.choice([[], [None], ["a", None]])
            row["tags"] = rng.choice([{}, {"k": None}])
            row["trace_id"] = rng.choice(["", "x" * rng.randrange(200), "ü"])
            row["timestamp"] = rng.randrange(-(6 * 10**16), 25 * 10**16)
            row["cached_tokens"] = rng.choice([0, 2**53, None])
            row["log_index"] = rng.randrange(2**31)
            row["user_id"] = rng.choice(["", f"{rng.getrandbits(64)}", None])
    table = segment_file.prepared(table_of(rows))
    start = rng.choice([0, 0, rng.randrange(len(rows))])
    return table.slice(start, rng.randint(1, len(rows) - start))


def _files(rng: random.Random, tables: list[Any]) -> Counter[str]:
    page, is_packed = rng.choice([40, 300, 65536]), rng.random() < 0.5
    expected = pa.concat_tables(tables).cast(SCHEMA)
    found = read(written(tables, page, is_packed=is_packed))
    found.validate(full=True)
    assert found.schema.equals(read(by_pyarrow(tables)).schema, check_metadata=True)
    assert found.equals(expected), (page, is_packed)
    mine, theirs = (pq.read_metadata(pa.BufferReader(each)) for each in (written(tables, page), by_pyarrow(tables)))
    assert (mine.num_rows, mine.num_row_groups, mine.metadata) == (theirs.num_rows, len(tables), theirs.metadata)
    for group in range(len(tables)):
        for place in range(mine.num_columns):
            _is_described_alike(*(each.row_group(group).column(place) for each in (mine, theirs)))
    return Counter({"rows written": len(found)})


def written(tables: list[Any], page: int, *, is_packed: bool = False) -> bytes:
    """The file that the kernel makes, a row group a table."""
    file = io.BytesIO()
    writer = CompiledParquet(file, SETTINGS._replace(page=page), is_packed=is_packed)
    for table in tables:
        writer.write_group(table)
    writer.close()
    return file.getvalue()


def by_pyarrow(tables: list[Any]) -> bytes:
    """The one of its twin."""
    file = io.BytesIO()
    writer = PyarrowParquet(file, "none")
    for table in tables:
        writer.write_group(table)
    writer.close()
    return file.getvalue()


def read(data: bytes) -> Any:
    """What pyarrow reads."""
    return pq.read_table(pa.BufferReader(data))


def _is_described_alike(mine: Any, theirs: Any) -> None:
    for name in ("path_in_schema", "physical_type", "num_values", "is_stats_set", "compression"):
        assert getattr(mine, name) == getattr(theirs, name), mine.path_in_schema
    if mine.is_stats_set:
        assert mine.statistics.null_count == theirs.statistics.null_count
        if mine.statistics.has_min_max:
            found, expected = ((each.min_raw, each.max_raw) for each in (mine.statistics, theirs.statistics))
            assert found == expected, mine.path_in_schema
        else:  # ids have none, and what is not there
            assert mine.path_in_schema == "session_id" or not theirs.statistics.has_min_max


def _taken(rng: random.Random, tables: list[Any]) -> Counter[str]:
    """Rows of batches, whose dictionaries differ, in any order."""
    batches = [batch for table in tables for batch in _decoded(rng, table).to_batches()]
    pieces = np.repeat(np.arange(len(batches), dtype=np.uint16), list(map(len, batches)))
    rows = np.concatenate([np.arange(len(each), dtype=np.int32) for each in batches])
    taking, given = Taking(), list(map(TakenBatch, batches))
    for _ in range(2):
        order = np.array(rng.choices(range(len(rows)), k=rng.randint(1, len(rows))))
        found = taking.table(given, pieces[order], rows[order])
        found.validate(full=True)
        expected = merge.joined(batches).take(pa.array(order))
        assert found.schema.equals(WRITTEN)
        assert found.cast(SCHEMA).equals(expected.cast(SCHEMA))
    return Counter({"rows taken": len(rows)})


def _decoded(rng: random.Random, table: Any) -> Any:
    """The table with dictionaries of its own, as a file that is read has them."""
    if rng.random() < 0.5:
        return table
    for name in FEW_VALUES:
        place = WRITTEN.get_field_index(name)
        column = table.column(name).cast(pa.string()).combine_chunks().dictionary_encode()
        table = table.set_column(place, WRITTEN.field(name), column)
    return table


def _sums(rng: random.Random, table: Any) -> Counter[str]:
    table = segment_file.prepared(table)
    columns = segment_sums.SummedColumns.of(table)
    start = rng.randrange(table.num_rows)
    rows = slice(start, rng.randint(start + 1, table.num_rows))
    assert segment_sums.compiled_sums_of(columns.counts, columns.flags, rows) == segment_sums.sums_of(
        columns.counts, columns.flags, rows
    )
    return Counter({"rows added up": rows.stop - rows.start})


def _sizes(rng: random.Random, table: Any) -> Counter[str]:
    """Bytes of rows, of a part of a table too, and with texts of a dictionary that count for each row."""
    assert kernel is not None
    batch, rows, common = table.to_batches()[0].__arrow_c_array__(), rng.choice([1, 2, 8, 64, 1000]), row_sizes.COMMON
    assert kernel.batch_bytes(*batch) == schema.listed_bytes_of(table)
    if rng.random() < 0.5:
        common = 0
    found = kernel.bytes_of_runs(*batch, rows, row_sizes.FIXED, common)
    assert np.frombuffer(found, np.int64).tolist() == row_sizes.listed_of_runs(table, rows, common).tolist()
    return Counter({"rows with sizes": table.num_rows})


def _users(rng: random.Random, table: Any) -> Counter[str]:
    users, flags = table.column("user_id").chunk(0), np.array(rng.choices(range(4), k=table.num_rows), np.uint8)
    found, expected = user_counts.compiled_users(users, flags), user_counts.counted_users(users, flags)
    assert found.users.equals(expected.users)
    assert (found.rows.tolist(), found.calls.tolist()) == (expected.rows.tolist(), expected.calls.tolist())
    return Counter({"users counted": len(found.users)})


def _entries(rng: random.Random) -> Counter[str]:
    assert kernel is not None
    most = rng.choice([3, 2**11, 2**32])
    groups = sorted(rng.sample(range(2**16), rng.randint(0, 5)))
    hashes = [np.array([rng.randrange(most) for _ in range(rng.randint(0, 300))], np.uint32) for _ in groups]
    assert kernel.sorted_entries(hashes, groups) == id_index.sorted_pairs(hashes, groups)
    return Counter({"entries sorted": sum(map(len, hashes))})


def _damaged(rng: random.Random, table: Any) -> Counter[str]:
    """Offsets and numbers that do not lie in the buffers are refused, others are an answer."""
    assert kernel is not None
    wrong = [-1, 0, 1, 1000, 2**31 - 1]
    texts, tags, few = (table.column(name).chunk(0) for name in ("trace_id", "tags", "model"))
    changed = np.frombuffer(rng.choice([texts, tags, few.indices]).buffers()[1], np.int32).copy()
    changed[rng.randrange(len(changed))] = rng.choice(wrong)
    pieces, rows = (np.array([rng.choice([0, 0, 0, *wrong[1:-1]])], kind) for kind in (np.uint16, np.int32))
    whole = [(b"\2\0\0\0\2\1", 0, rng.choice([len(table), *wrong]), 1)]
    data, size = texts.buffers()[2] or b"", len(table)
    flags = np.zeros(rng.choice([0, size]), np.uint8)
    attempts: list[Callable[[], object]] = [
        lambda: kernel.text_bodies(None, data, changed, texts.offset, size, whole, rng.random() < 0.5),
        lambda: kernel.counted_texts(None, data, changed, texts.offset, size, flags),
        lambda: kernel.bytes_of_runs(*_batch_of(changed, size), 1, 0, 0),
        lambda: kernel.batch_bytes(*_batch_of(changed, size)),
        lambda: kernel.coded_bodies(None, changed, 0, size, data, texts.buffers()[1], 0, 3, whole),
        lambda: kernel.nested_pages(None, changed, 0, size, None, 0, rng.choice([0, size]), False, 10),
        lambda: kernel.number_bodies(None, changed, 0, size, rng.choice([0, 4, 8, 16]), rng.randrange(5), whole),
        lambda: kernel.take_texts([(None, changed, texts.offset, size, data)], kernel.taken_places(pieces, rows)),
        lambda: kernel.take_lists([(None, changed, 0, size, rng.choice(wrong))], kernel.taken_places(pieces, rows)),
        lambda: kernel.take_codes([(None, changed, 0, size, np.zeros(3, np.int32))], kernel.taken_places(pieces, rows)),
        lambda: kernel.take_numbers(
            [(None, changed, 0, size)], kernel.taken_places(pieces, rows), rng.choice([0, 4, 8, 16])
        ),
    ]
    counts: Counter[str] = Counter()
    for attempt in attempts:
        try:
            attempt()
        except ValueError:
            counts["damage refused"] += 1
    return counts


def _batch_of(numbers: Any, size: int) -> Any:
    """A batch in which lists of texts begin at these numbers, and which are those of a dictionary, too."""
    size = min(size, len(numbers) - 1)
    changed = pa.py_buffer(numbers)
    lists = pa.Array.from_buffers(pa.list_(pa.string()), size, [None, changed], children=[pa.array(["a", "bc"] * 40)])
    few = pa.DictionaryArray.from_buffers(
        pa.dictionary(pa.int32(), pa.string()), size, [None, changed], pa.array(["d"])
    )
    return pa.record_batch([lists, few], ["lists", "few"]).__arrow_c_array__()
