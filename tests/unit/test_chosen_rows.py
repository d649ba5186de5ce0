"""A few rows of a row group by the kernel are those that pyarrow reads, and so are what cannot be read."""

import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from processor.core.kernel.loaded import kernel
from processor.event_store import segment_file, stored_sums
from processor.event_store.directory_storage import DirectoryStorage
from processor.event_store.manifest import Segment, segment_id
from processor.event_store.row_groups import Packing
from processor.event_store.schema import SCHEMA
from processor.event_store.stored_sums import DamagedSegment
from server.errors import Refused
from server.explore import chosen_rows
from server.explore.gathered_rows import GatheredRows
from server.explore.segment_files import OpenFile, SegmentFile
from tests.fuzz.chosen_twins import compare
from tests.support.event_store import random_row, table_of

needs_kernel = pytest.mark.skipif(kernel is None, reason="the compiled kernel does not run")

ROWS: Final = 3000


@needs_kernel
@pytest.mark.parametrize("seed", range(60))
def test_the_kernel_reads_what_its_twin_reads(seed: int) -> None:
    compare(seed)


def stored(directory: Path, packing: Packing = "zstd") -> tuple[Path, Any]:
    """A segment of one row group, and its rows."""
    rng = random.Random(1)
    rows = [random_row(rng, project="a", timestamp=at, log_offset=at, log_index=0) for at in range(ROWS)]
    for row in rows[::7]:
        row["user_id"] = f"user-{rng.randrange(500)}"
    segment = Segment(id=segment_id(0, 0, 1), partition=0, start=0, end=1, level=0)
    table = table_of(rows)
    segment_file.write(DirectoryStorage(directory), segment, [table], packing=packing)
    return directory / f"{segment.id}.parquet", table


@pytest.mark.parametrize("is_compiled", [pytest.param(True, marks=needs_kernel), False])
@pytest.mark.parametrize("packing", ["none", "zstd"])
def test_rows_of_a_segment(
    packing: Packing, is_compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, table = stored(tmp_path, packing)
    if not is_compiled:
        monkeypatch.setattr(chosen_rows, "kernel", None)
    opened = SegmentFile(path).opened()
    reads: list[int] = []
    real = OpenFile.read

    def read(file: OpenFile, group: int, columns: Any = None) -> Any:
        reads.append(group)
        return real(file, group, columns)

    monkeypatch.setattr(OpenFile, "read", read)
    users = table["user_id"].to_pylist()
    for wanted in ({"u1", "user-3"}, {"nobody"}, {users[0], *users[700:770]} - {None}):
        rows = opened.find(0, {"user_id": wanted})
        assert rows.tolist() == [row for row, user in enumerate(users) if user in wanted]
        rows = rows[: chosen_rows.FEW]
        assert opened.take(0, SCHEMA.names, rows).equals(table.take(pa.array(rows)).combine_chunks())
    both = opened.find(0, {"user_id": ["u1"], "session_id": ["s1", "s2"]})
    sessions = table["session_id"].to_pylist()
    assert both.tolist() == [row for row in range(ROWS) if users[row] == "u1" and sessions[row] in {"s1", "s2"}]
    assert bool(reads) is not is_compiled
    many = np.arange(chosen_rows.FEW + 1)
    assert opened.values(0, ["model"], many) is None, "of so many rows pyarrow reads the columns"
    assert opened.take(0, ["model", "tags"], many).equals(table.select(["model", "tags"]).slice(0, len(many)))


@pytest.mark.parametrize(
    "settings",
    [
        {"compression": "gzip"},
        {"data_page_version": "2.0"},
        {"column_encoding": {"trace_id": "DELTA_BYTE_ARRAY"}, "use_dictionary": False},
    ],
    ids=lambda each: next(iter(each)),
)
def test_rows_that_are_written_in_another_form_are_left_to_pyarrow(settings: dict[str, Any], tmp_path: Path) -> None:
    table, path = stored(tmp_path)[1], tmp_path / "other.parquet"
    pq.write_table(table, path, **{"compression": "zstd", **settings})
    opened, rows = SegmentFile(path).opened(), np.array([5, 2000])
    assert opened.values(0, ["model", "trace_id"], rows) is None
    assert opened.take(0, ["model", "trace_id"], rows).equals(table.select(["model", "trace_id"]).take(rows))
    texts = table["trace_id"].to_pylist()
    assert opened.find(0, {"trace_id": ["trace-1"]}).tolist() == [
        at for at, text in enumerate(texts) if text == "trace-1"
    ]


@pytest.mark.parametrize("is_compiled", [pytest.param(True, marks=needs_kernel), False])
@pytest.mark.parametrize("column", ["user_id", "trace_id", "timestamp", "tags"])
@pytest.mark.parametrize("cut", [lambda part: b"\0" * len(part), lambda part: part[:9] + b"\xff" * (len(part) - 9)])
def test_a_damaged_page_is_refused(
    cut: Callable[[bytes], bytes], column: str, is_compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = stored(tmp_path)
    if not is_compiled:
        monkeypatch.setattr(chosen_rows, "kernel", None)
    footer, data = pq.read_metadata(path), path.read_bytes()
    for number in range(footer.num_columns):
        chunk = footer.row_group(0).column(number)
        if chunk.path_in_schema.partition(".")[0] == column:
            start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
            end = start + chunk.total_compressed_size
            data = data[:start] + cut(data[start:end]) + data[end:]
    path.write_bytes(data)
    opened = SegmentFile(path).opened()
    with pytest.raises(Refused, match="damaged"):
        opened.take(0, ["model", column], np.array([1, 2, ROWS - 1]))
    if column in {"user_id", "trace_id"}:
        with pytest.raises(Refused, match="damaged"):
            opened.find(0, {column: ["u1"]})


@needs_kernel
def test_damage_beside_the_rows_of_a_question_is_found_by_the_check_of_files(tmp_path: Path) -> None:
    """A few rows are read up to the last one asked for: what lies behind it need not be noticed, but gives no other
    rows, and the digest of the file finds every bit."""
    path, table = stored(tmp_path)
    segment = Segment(id=path.stem, partition=0, start=0, end=1, level=0)
    storage, row = DirectoryStorage(tmp_path), np.array([5])
    segment = segment_file.write(storage, segment, [table], packing="zstd")
    columns, wanted = ["trace_id", "user_id"], table.select(["trace_id", "user_id"]).take(row)
    sound, footer, unnoticed = path.read_bytes(), pq.read_metadata(path), 0
    stored_sums.check(storage, segment)
    for number in range(footer.num_columns):
        chunk = footer.row_group(0).column(number)
        for step in range(10 if chunk.path_in_schema in columns else 1):
            damaged = bytearray(sound)
            damaged[chunk.data_page_offset + step * chunk.total_compressed_size // 12] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(DamagedSegment):
                stored_sums.check(storage, segment)
            with suppress(Refused):
                assert SegmentFile(path).opened().take(0, columns, row).equals(wanted)
                unnoticed += 1
    assert unnoticed


TEXTS: Final = (0, 0, 1, 0)
"""Form, width and levels of a column of texts."""


@needs_kernel
def test_rows_in_another_order_are_a_fault_of_ours(tmp_path: Path) -> None:
    assert kernel is not None
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as file:
        column = (0, 0, 9, 100, False, *TEXTS)
        for rows in ([2, 1], [1, 1], [-1], [9]):
            with pytest.raises(ValueError, match="another order"):
                kernel.rows_of_columns(file.fileno(), [column], np.array(rows), 9, unpacks_nothing)
        with pytest.raises(ValueError, match="another order"):
            kernel.rows_with_texts(file.fileno(), 0, 0, [b"b", b"a"], 9, 100, None)
        assert kernel.rows_of_columns(file.fileno(), [column, column], np.array([], np.int64), 9, unpacks_nothing) == [
            [],
            [],
        ]


def unpacks_nothing(data: bytes, size: int) -> bytes:
    raise AssertionError("nothing is packed")


@needs_kernel
@pytest.mark.parametrize(("start", "size"), [(0, 0), (0, 9), (1 << 40, 9), (-1, 9), (0, -1), (1 << 62, 1 << 62)])
def test_what_does_not_lie_in_the_file_is_left_to_pyarrow(start: int, size: int, tmp_path: Path) -> None:
    assert kernel is not None
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as file:
        column = (start, size, 9, 100, False, *TEXTS)
        assert kernel.rows_of_columns(file.fileno(), [column], np.array([1]), 9, unpacks_nothing) is None
        assert kernel.rows_with_texts(file.fileno(), start, size, [b"a"], 9, 100, None) is None


@needs_kernel
def test_an_error_of_the_disk_is_one(tmp_path: Path) -> None:
    assert kernel is not None
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            kernel.rows_of_columns(descriptor, [(0, 9, 9, 100, False, *TEXTS)], np.array([1]), 9, unpacks_nothing)
        with pytest.raises(IsADirectoryError):
            kernel.rows_with_texts(descriptor, 0, 9, [b"a"], 9, 100, None)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("packing", ["none", "zstd"])
def test_a_file_that_was_cut_short_after_it_was_opened_is_refused(packing: Packing, tmp_path: Path) -> None:
    path, _ = stored(tmp_path, packing)
    opened, footer = SegmentFile(path).opened(), pq.read_metadata(path)
    (trace,) = [
        footer.row_group(0).column(number)
        for number in range(footer.num_columns)
        if footer.row_group(0).column(number).path_in_schema == "trace_id"
    ]
    os.truncate(path, trace.data_page_offset + trace.total_compressed_size - 5)
    with pytest.raises(Refused, match="damaged"):
        opened.take(0, ["trace_id"], np.array([ROWS - 1]))
    with pytest.raises(Refused, match="damaged"):
        opened.find(0, {"trace_id": ["trace-1"]})
    with pytest.raises(Refused, match="damaged"):
        opened.take(0, ["user_id"], np.array([1]))
    opened.close()


ONE_BLOCK: Final = 128 << 10
"""Bytes of a block of zstd at most."""


@needs_kernel
@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("said", [False, True])
@pytest.mark.parametrize("size", [0, 1, 255, 256, 5000, 65_535, 70_000, 140_000])
def test_frames_of_bytes_as_they_are_need_not_be_unpacked(
    size: int, said: bool, checksum: bool, tmp_path: Path
) -> None:
    """They have the same text as one that zstd unpacks, and a frame of another size is left to pyarrow."""
    assert kernel is not None
    text = bytes(random.Random(size).choices(range(1, 127), k=size))
    body = b"\x02\0\0\0\x02\x01" + len(text).to_bytes(4, "little") + text
    calls: list[int] = []

    def unpack(data: bytes, of: int) -> bytes:
        calls.append(of)
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=of)

    for level in (-100, 1):  # the first of them leaves bytes as they are; the other one does where that is shorter
        packer = zstandard.ZstdCompressor(level=level, write_content_size=said, write_checksum=checksum)
        packed = packer.compress(body)
        for wrong in (0, 1):
            path = tmp_path / "page"
            head = page_head(len(body) + wrong, len(packed))
            path.write_bytes(head + packed)
            with path.open("rb") as file:
                column = (0, len(head) + len(packed), 1, 1 << 20, True, *TEXTS)
                found = kernel.rows_of_columns(file.fileno(), [column], np.array([0]), 1, unpack)
            assert found == (None if wrong else [[text.decode()]])
            if level < 0:
                assert (calls == []) is (not wrong and not checksum and len(body) <= ONE_BLOCK)
            calls.clear()


def page_head(unpacked: int, packed: int) -> bytes:
    """Of a data page with one text, in Thrift's compact protocol."""

    def number(value: int) -> bytes:
        value, found = 2 * value, bytearray()
        while value > 127:
            found.append(value & 127 | 128)
            value >>= 7
        return bytes([*found, value])

    sizes = b"\x15" + number(0) + b"\x15" + number(unpacked) + b"\x15" + number(packed)
    return sizes + b"\x2c\x15" + number(1) + b"\x15" + number(0) + 2 * (b"\x15" + number(3)) + b"\0\0"


@pytest.mark.parametrize("is_compiled", [pytest.param(True, marks=needs_kernel), False])
def test_rows_that_are_gathered_are_those_that_were_added(
    is_compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, table = stored(tmp_path)
    if not is_compiled:
        monkeypatch.setattr(chosen_rows, "kernel", None)
    opened, columns = SegmentFile(path).opened(), ["user_id", "project", "cost_usd", "tags"]
    assert GatheredRows(columns).table().equals(table.select(columns).slice(0, 0))
    known: dict[str, str | int] = {"project": "a", "model": "it is not asked for"}
    added = [[7, 2999], [], [0], [*range(0, 2400, 4)], [5, 6, 8]]  # the fourth are too many to read one by one
    users = table["user_id"].to_pylist()
    for given in ({}, known):
        gathered = GatheredRows(columns)
        for rows in added:
            listed = {"user_id": [users[row] for row in rows], "model": ["it is not asked for" for _ in rows]}
            gathered.add(opened, 0, np.array(rows, np.int64), given, listed if given else {})
        wanted = table.select(columns).take(pa.array([row for rows in added for row in rows], pa.int64()))
        assert gathered.count == len(wanted)
        assert gathered.table().combine_chunks().equals(wanted.combine_chunks())
    opened.close()
