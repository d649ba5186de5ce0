"""Segments that the compiled kernel writes: readers find the rows of its twin, and fresh rows are merged unread."""

import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from processor import memory
from processor.core.kernel.loaded import kernel
from processor.event_store import (
    compiled_take,
    id_index,
    merge,
    parquet_writer,
    row_groups,
    segment_file,
    segment_sums,
    segment_table,
)
from processor.event_store.directory_storage import DirectoryStorage
from processor.event_store.manifest import Segment, segment_id
from processor.event_store.parquet_writer import ParquetWriter
from processor.event_store.row_groups import Packing
from processor.event_store.schema import SCHEMA, bytes_of, row_bytes
from tests.fuzz.segment_twins import compare, random_table, read, written
from tests.support.event_store import make_row, table_of

needs_kernel = pytest.mark.skipif(kernel is None, reason="the compiled kernel does not run")


def new(start: int, end: int, level: int = 0) -> Segment:
    return Segment(id=segment_id(0, start, end), partition=0, start=start, end=end, level=level)


@needs_kernel
@pytest.mark.parametrize("seed", range(60))
def test_the_kernel_does_what_its_twin_does(seed: int) -> None:
    compare(seed)


@needs_kernel
@pytest.mark.parametrize("is_packed", [False, True])
def test_duckdb_reads_what_the_kernel_has_written(is_packed: bool, tmp_path: Path) -> None:
    rng = random.Random(3)
    tables = [random_table(rng) for _ in range(3)]
    path = tmp_path / "a.parquet"
    path.write_bytes(written(tables, 300, is_packed=is_packed))
    found = duckdb.connect().sql("SELECT * FROM read_parquet(?)", params=[str(path)]).to_arrow_table()
    expected = pa.concat_tables(tables).cast(SCHEMA)
    for name in SCHEMA.names:
        assert found.column(name).to_pylist() == expected.column(name).to_pylist(), name


@needs_kernel
@pytest.mark.parametrize("packing", ["none", "zstd"])
def test_a_segment_is_the_same_without_the_kernel(
    packing: Packing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, found = random_table(random.Random(4)), []
    for each in (kernel, None):
        for module in (row_groups, segment_sums, id_index):
            monkeypatch.setattr(module, "kernel", each)
        segment = segment_file.write(DirectoryStorage(tmp_path), new(0, 5), [table], packing=packing)
        rows = pq.read_table(tmp_path / f"{segment.id}.parquet")
        index = (tmp_path / f"{segment.id}.idx").read_bytes()
        found.append((rows, index, segment.rows, segment.projects, segment.arrival_min, segment.arrival_max))
    assert found[0][1:] == found[1][1:]
    assert found[0][0].equals(found[1][0])


@needs_kernel
def test_long_texts_and_many_different_ones_have_no_dictionary() -> None:
    rng = random.Random(5)
    rows = [make_row(rng, log_partition=0, log_offset=1, log_index=place) for place in range(400)]
    for row in rows:
        row["error_message"] = f"{rng.getrandbits(16_000):x}"
        row["user_id"] = f"{rng.getrandbits(64):x}"
        row["name"] = "n" * 5000
    table = segment_file.prepared(table_of(rows))
    data = written([table], 1000)
    group = pq.read_metadata(pa.BufferReader(data)).row_group(0)
    columns = {group.column(place).path_in_schema: group.column(place) for place in range(group.num_columns)}
    assert [columns[name].has_dictionary_page for name in ("error_message", "user_id", "name")] == [False, False, True]
    assert read(data).equals(table.cast(SCHEMA))


@needs_kernel
def test_texts_that_were_chosen_to_have_equal_hashes_have_no_dictionary() -> None:
    assert kernel is not None
    seen: dict[bool, bool] = {}
    for is_chosen in (False, True):
        texts = texts_of_one_hash(4000) if is_chosen else [f"{number:016x}".encode() for number in range(4000)]
        hashes = id_index.hashes_at(b"".join(texts), 16 * np.arange(4000), 16 * np.arange(1, 4001))
        assert (len(set(hashes.tolist())) == 1) is is_chosen
        offsets = np.arange(0, 16 * 4001, 16, dtype=np.int32)
        twice = np.concatenate([offsets[:-1], offsets + 16 * 4000]).astype(np.int32)
        pages, _ = kernel.flat_pages(None, 0, 8000, 8000)
        seen[is_chosen] = kernel.text_bodies(None, b"".join(texts) * 2, twice, 0, 8000, pages, True) is not None
    assert seen == {False: True, True: False}


def texts_of_one_hash(count: int) -> list[bytes]:
    """Different bytes, two words each, that have the same hash: the first word is counted, the second one undoes it."""
    mix, mask = 0x9E3779B97F4A7C15, 2**64 - 1
    undone = pow(mix, -1, 2**64)
    wanted = 12345 * undone & mask
    found = []
    for first in range(count):
        hashed = (16 * mix ^ first) * mix & mask
        hashed ^= hashed >> 32
        found.append(first.to_bytes(8, "little") + (hashed ^ wanted).to_bytes(8, "little"))
    return found


@needs_kernel
def test_rows_that_are_not_there_hide_no_items() -> None:
    rows = [make_row(log_partition=0, log_offset=1, log_index=place, tools_used=["a", "b"]) for place in range(3)]
    table = segment_file.prepared(table_of(rows))
    place = SCHEMA.get_field_index("tools_used")
    tools = table.column(place).chunk(0)
    hidden = pa.Array.from_buffers(tools.type, 3, [pa.py_buffer(b"\5"), tools.buffers()[1]], children=[tools.values])
    data = written([table.set_column(place, SCHEMA.field(place), hidden)], 1000)
    assert read(data).column("tools_used").to_pylist() == [["a", "b"], None, ["a", "b"]]


def merged_rows(directory: Path, segment: Segment) -> Any:
    return pq.read_table(directory / f"{segment.id}.parquet")


def test_fresh_rows_are_merged_without_reading_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(6)
    writer, parts = ParquetWriter(tmp_path), []
    tables = {(start, start + 5): random_table(rng) for start in (0, 5, 10)}
    monkeypatch.setattr(segment_table, "table_of", lambda given: given[0])
    for (start, end), table in tables.items():
        table = table.take(pa.array(segment_order(table)))
        parts.append(writer.write([segment_file.prepared(table)], new(start, end), 0))
    other = ParquetWriter(tmp_path).merge(parts, new(0, 15, 1), 0)
    opened: list[Path] = []
    monkeypatch.setattr(merge.FileSource, "open", lambda path, _: opened.append(path))
    found = writer.merge(parts, new(0, 15, 1), 0)
    assert not opened
    assert merged_rows(tmp_path, found).equals(merged_rows(tmp_path, other))
    with pytest.raises(AttributeError):  # they are let go of
        writer.merge(parts, new(0, 15, 1), 0)
    assert opened


@pytest.mark.parametrize("is_large", [True, False])
def test_a_large_merge_begins_and_ends_with_little_memory(
    *, is_large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cuts leave 140 MiB free that the C library keeps, and 48 MiB of rows of segments that are not merged yet."""
    rng = random.Random(6)
    writer, parts = ParquetWriter(tmp_path), []
    monkeypatch.setattr(segment_table, "table_of", lambda given: given[0])
    for start in (0, 5, 10):
        table = random_table(rng)
        table = segment_file.prepared(table.take(pa.array(segment_order(table))))
        parts.append(writer.write([table], new(start, start + 5), 0))
    opened: list[Path] = []
    given_back: list[int] = []
    source = merge.FileSource.open

    def counted(path: Path, size: int) -> merge.FileSource:
        opened.append(path)
        return source(path, size)

    monkeypatch.setattr(merge.FileSource, "open", counted)
    monkeypatch.setattr(memory, "trim", lambda: given_back.append(len(opened)))
    if is_large:
        monkeypatch.setattr(parquet_writer, "MOST_UNPACKED", 0)
    writer.merge(parts[1:], new(5, 15, 1), 0)
    assert not opened
    writer.merge(parts[:1], new(0, 5, 1), 0)
    assert given_back == ([0, 0, 0, 1] if is_large else [])
    assert opened == ([tmp_path / f"{parts[0].id}.parquet"] if is_large else [])


def segment_order(table: Any) -> Any:
    times = table.column("timestamp").cast(pa.int64()).to_numpy()
    names = np.array(table.column("project").cast(pa.string()).to_pylist())
    return np.lexsort((times, names))


@needs_kernel
def test_dictionaries_of_what_is_merged_do_not_grow_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row may have a version of its own of what usually has few."""
    monkeypatch.setattr(compiled_take, "MOST_LETTERS", 1000)
    monkeypatch.setattr(segment_file, "ROW_GROUP", 20)
    writer, parts, rows = ParquetWriter(tmp_path), [], []
    for start in (0, 5):
        own = [make_row(log_partition=0, log_offset=start, log_index=place) for place in range(400)]
        for place, row in enumerate(own):
            row.update(sdk_version=f"1.{start}.{place}", timestamp=row["timestamp"] + 2 * place + start)
        parts.append(segment_file.write(DirectoryStorage(tmp_path), new(start, start + 5), [table_of(own)]))
        rows += own
    tables = list(merge.merged([tmp_path / f"{part.id}.parquet" for part in parts]))
    rows.sort(key=lambda row: row["timestamp"])
    assert [text for table in tables for text in table["sdk_version"].to_pylist()] == [
        row["sdk_version"] for row in rows
    ]
    # The dictionaries of both files' row groups come with any row of these.
    assert max(len(table["sdk_version"].chunk(0).dictionary) for table in tables) <= 100 + 2 * 20
    assert writer.merge(parts, new(0, 10, 1), 0).rows == 800


def test_of_a_dictionary_in_common_a_table_counts_what_it_may_have() -> None:
    texts = pa.array([f"{number:0200}" for number in range(5000)])
    table = segment_file.prepared(table_of([make_row(log_partition=0, log_offset=1, log_index=0)]))
    place = table.schema.get_field_index("sdk_version")
    column = pa.DictionaryArray.from_arrays(pa.array([7], pa.int32()), texts)
    table = table.set_column(place, table.schema.field(place), column)
    assert table.nbytes > 1_000_000
    assert 200 < row_bytes(table) == bytes_of(table) < 2000


def test_rows_that_are_kept_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = random_table(random.Random(7))
    monkeypatch.setattr(parquet_writer, "MOST_RECENT", 2 * table.nbytes + 1)
    recent = parquet_writer.RecentTables()
    for name in "abc":
        recent.add(name, table)
    assert [recent.get(name) is table for name in "abc"] == [False, True, True]
    recent.remove(["b", "unknown"])
    recent.add("d", table)
    assert [recent.get(name) is table for name in "bcd"] == [False, True, True]
    recent.add("e", pa.concat_tables([table] * 3))
    assert [recent.get(name) is None for name in "cde"] == [True] * 3


def test_rows_of_a_segment_that_waits_for_dozens_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    table = random_table(random.Random(8))
    monkeypatch.setattr(parquet_writer, "MOST_RECENT_TABLE", table.nbytes)
    recent = parquet_writer.RecentTables()
    recent.add("a", table)
    recent.add("b", pa.concat_tables([table] * 2))
    assert recent.get("a") is table
    assert recent.get("b") is None


@needs_kernel
def test_a_row_group_has_the_items_of_its_own_rows_only() -> None:
    rows = [
        make_row(log_index=place, tags={f"key{place}": f"value{place}"}, tools_used=["a"] * 3) for place in range(40)
    ]
    table = segment_file.prepared(table_of(rows))
    parts = [table.slice(0, 10), table.slice(10, 20), table.slice(30)]
    apart = [segment_file.prepared(table_of(rows[start:end])) for start, end in ((0, 10), (10, 30), (30, 40))]
    assert written(parts, 300) == written(apart, 300)


@needs_kernel
@pytest.mark.parametrize("seed", range(40))
def test_the_least_and_the_greatest_of_a_column_are_those_of_pyarrow(seed: int) -> None:
    assert kernel is not None
    rng = random.Random(seed)
    for kind, values in (
        (pa.int32(), [0, -(2**31), 2**31 - 1, 7]),
        (pa.timestamp("us", "UTC"), [0, -(2**62), 2**62, 7]),
        (pa.int64(), [0, -(2**63), 2**63 - 1, 7]),
        (pa.float64(), [-0.0, 0.0, 1.5, -1e300, float("inf"), float("nan")]),
        (pa.decimal128(19, 12), [Decimal(0), Decimal("-1.5"), Decimal("1e-12"), Decimal(1234567), Decimal(-7)]),
    ):
        column = pa.array(rng.choices([None, *values], k=rng.choice([1, 9, 50])), kind)
        start = rng.randrange(len(column))
        column = column.slice(start, rng.randint(0, len(column) - start))
        there, data = column.buffers()
        given = there if column.null_count else None, data, column.offset, len(column)
        found = kernel.number_bounds(*given, kind.bit_width // 8, pa.types.is_float64(kind))
        expected = pc.min_max(column.cast(pa.int64()) if pa.types.is_timestamp(kind) else column)
        least, most = expected["min"].as_py(), expected["max"].as_py()
        if least is None or least != least:  # noqa: PLR0124 - no number at all
            assert found is None
        elif pa.types.is_decimal(kind):
            whole = [int.from_bytes(each, "little", signed=True) for each in found]
            assert whole == [int(least.scaleb(12)), int(most.scaleb(12))]
        else:
            assert found == (least, most)
    with pytest.raises(ValueError, match="fewer values"):
        kernel.number_bounds(None, bytes(15), 0, 2, 8, False)
    with pytest.raises(ValueError, match="no values"):
        kernel.number_bounds(None, bytes(16), 0, 2, 4, True)


@needs_kernel
def test_event_ids_are_written_like_those_of_the_twin() -> None:
    assert kernel is not None
    ids = np.random.default_rng(1).integers(0, 2**63, (50, 2), np.uint64)
    assert kernel.event_id_texts(ids) == segment_table.id_texts(ids).tobytes()
    assert kernel.event_id_texts(ids[:0]) == b""
    with pytest.raises(ValueError, match="another size"):
        kernel.event_id_texts(bytes(15))
