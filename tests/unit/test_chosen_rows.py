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
from server.explore import chosen_rows, cost_column
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
        column = (0, 0, 9, 100, *TEXTS)
        for rows in ([2, 1], [1, 1], [-1], [9]):
            with pytest.raises(ValueError, match="another order"):
                kernel.rows_of_columns(file.fileno(), [column], np.array(rows), 9, unpacks_nothing)
        with pytest.raises(ValueError, match="another order"):
            kernel.rows_with_texts(file.fileno(), 0, 0, [b"b", b"a"], 9, 100, unpacks_nothing)
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
        column = (start, size, 9, 100, *TEXTS)
        assert kernel.rows_of_columns(file.fileno(), [column], np.array([1]), 9, unpacks_nothing) is None
        assert kernel.rows_with_texts(file.fileno(), start, size, [b"a"], 9, 100, unpacks_nothing) is None


WIDE: Final = b"\x20\x03" + b"\xff" * 32
"""Eight numbers of a dictionary, of 32 bits each."""
THERE: Final = b"\x02\0\0\0\x02\x01"
"""The levels of one value."""


@needs_kernel
@pytest.mark.parametrize(
    ("words", "many", "page", "encoding", "said", "form"),
    [
        (bytes(8), 1 << 61, WIDE, 8, None, (1, 8)),
        (bytes(4000), 1 << 62, WIDE, 8, None, (0, 0)),
        (b"", 0, b"\1\0\0\0a", 0, 1 << 36, (0, 0)),
    ],
    ids=["numbers of a dictionary", "texts of a dictionary", "bytes"],
)
def test_sizes_that_no_page_has_are_left_to_pyarrow(
    words: bytes, many: int, page: bytes, encoding: int, said: int | None, form: tuple[int, int], tmp_path: Path
) -> None:
    """Their products and sums would not fit into 64 bits, or nothing into memory."""
    assert kernel is not None
    data = page_head(len(words), len(words), many, kind=2) + words if many else b""
    size = len(THERE + page) if said is None else said
    data += page_head(size, size, encoding=encoding) + THERE + page
    (tmp_path / "pages").write_bytes(data)
    with (tmp_path / "pages").open("rb") as file:
        column = (0, 1 << 40, 1, 1 << 62, *form, 1, 0)
        assert kernel.rows_of_columns(file.fileno(), [column], np.array([0]), 1, unpacks_nothing) is None
        if form == (0, 0):
            found = kernel.rows_with_texts(file.fileno(), 0, 1 << 40, [b"a"], 1, 1 << 62, unpacks_nothing)
            assert found is None
        assert kernel.rows_of_columns(file.fileno(), [column], np.array([0]), 1 << 40, unpacks_nothing) is None


@needs_kernel
def test_a_row_group_of_more_rows_than_any_is_left_to_pyarrow(tmp_path: Path) -> None:
    """One page says of all of them that they have the same text: there would be no end of marking them."""
    assert kernel is not None
    rows, many = 1 << 40, b"\xff\xff\xff\xff\x0f"
    levels = b"\x80\x80\x80\x80\x80\x40\x01"
    body = len(levels).to_bytes(4, "little") + levels + b"\0" + 600 * (many[:-1] + b"\x0e")
    data = page_head(5, 5, 1, kind=2) + b"\1\0\0\0a" + page_head(len(body), len(body), rows, encoding=8) + body
    (tmp_path / "pages").write_bytes(data)
    with (tmp_path / "pages").open("rb") as file:
        assert kernel.rows_with_texts(file.fileno(), 0, len(data), [b"a"], rows, 1 << 62, unpacks_nothing) is None


# --- footers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_compiled", [pytest.param(True, marks=needs_kernel), False])
@pytest.mark.parametrize("column", ["trace_id", "cost_usd"])
def test_a_footer_with_a_packing_that_is_none_does_not_end_the_process(
    column: str, is_compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow ends it where it is asked for such a packing; the kernel goes by the pages."""
    path, table = stored(tmp_path)
    if not is_compiled:
        monkeypatch.setattr(chosen_rows, "kernel", None)
        monkeypatch.setattr(cost_column, "kernel", None)
    rename(path, column.encode() + b"\x15\x0c", column.encode() + b"\x15\x30")
    opened, rows = SegmentFile(path).opened(), np.array([5, 2000])
    asked: list[tuple[Callable[[], Any], Any]] = [
        (lambda: opened.take(0, [column], rows), table.select([column]).take(pa.array(rows)).combine_chunks()),
        (lambda: opened.read_coded(0, [column]), table.select([column]))
        if column == "cost_usd"
        else (lambda: opened.find(0, {column: ["none"]}).tolist(), []),
    ]
    for ask, expected in asked:
        if is_compiled:
            assert ask() == expected
        else:
            with pytest.raises(Refused, match="damaged"):
                ask()
    opened.close()


@pytest.mark.parametrize("name", [b"provider", b"timestamp", b"session_id", b"cost_usd"])
@pytest.mark.parametrize("end", [b"?", b"\xff"])
def test_a_footer_with_another_name_is_refused(name: bytes, end: bytes, tmp_path: Path) -> None:
    path, _ = stored(tmp_path)
    rename(path, name, name[:-1] + end)
    with pytest.raises(Refused, match="damaged"):
        SegmentFile(path)


def test_a_footer_with_another_name_of_tags_is_refused(tmp_path: Path) -> None:
    path, _ = stored(tmp_path)
    rename(path, b"key_value", b"key_valuX")
    with pytest.raises(Refused, match="damaged"):
        SegmentFile(path).opened_coded()


def rename(path: Path, old: bytes, new: bytes) -> None:
    """Write other bytes into the footer of a file."""
    data = path.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    assert old in data[start:]
    path.write_bytes(data[:start] + data[start:].replace(old, new))


@pytest.mark.parametrize("is_compiled", [pytest.param(True, marks=needs_kernel), False])
def test_a_row_that_a_row_group_does_not_have_is_refused(
    is_compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = stored(tmp_path)
    if not is_compiled:
        monkeypatch.setattr(chosen_rows, "kernel", None)
    with pytest.raises(Refused, match="damaged"):
        SegmentFile(path).opened().take(0, ["model"], np.array([ROWS]))


@pytest.mark.parametrize("is_compiled", [pytest.param(True, marks=needs_kernel), False])
def test_a_text_that_is_none_is_refused(is_compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, table = stored(tmp_path, "none")
    if not is_compiled:
        monkeypatch.setattr(chosen_rows, "kernel", None)
    text = table["event_id"][7].as_py().encode()
    path.write_bytes(path.read_bytes().replace(text, b"\xff" * len(text)))
    opened = SegmentFile(path).opened()
    assert opened.take(0, ["event_id"], np.array([6]))["event_id"][0] == table["event_id"][6]
    with pytest.raises(Refused, match="damaged"):
        opened.take(0, ["event_id"], np.array([7]))


@pytest.mark.parametrize("is_compiled", [pytest.param(True, marks=needs_kernel), False])
def test_texts_none_of_which_is_null_are_left_to_pyarrow(
    is_compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a column has no levels."""
    if not is_compiled:
        monkeypatch.setattr(chosen_rows, "kernel", None)
    table, path = stored(tmp_path)[1], tmp_path / "other.parquet"
    fields = [field.with_nullable(field.name != "event_id") for field in SCHEMA]
    texts = pa.array([*map(str, range(ROWS))])
    table = table.set_column(table.column_names.index("event_id"), "event_id", texts)
    pq.write_table(table.cast(pa.schema(fields)), path, use_dictionary=False)
    opened = SegmentFile(path).opened()
    assert opened.find(0, {"event_id": ["7", "0"]}).tolist() == [0, 7]
    assert opened.take(0, ["event_id"], np.array([7]))["event_id"].to_pylist() == ["7"]


@needs_kernel
def test_an_error_of_the_disk_is_one(tmp_path: Path) -> None:
    assert kernel is not None
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            kernel.rows_of_columns(descriptor, [(0, 9, 9, 100, *TEXTS)], np.array([1]), 9, unpacks_nothing)
        with pytest.raises(IsADirectoryError):
            kernel.rows_with_texts(descriptor, 0, 9, [b"a"], 9, 100, unpacks_nothing)
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
                column = (0, len(head) + len(packed), 1, 1 << 20, *TEXTS)
                found = kernel.rows_of_columns(file.fileno(), [column], np.array([0]), 1, unpack)
            assert found == (None if wrong else [[text.decode()]])
            if level < 0:
                assert (calls == []) is (not wrong and not checksum and len(body) <= ONE_BLOCK)
            calls.clear()


def page_head(unpacked: int, packed: int, values: int = 1, *, kind: int = 0, encoding: int = 0) -> bytes:
    """Of a data page with one text, or of another page, in Thrift's compact protocol."""

    def number(value: int) -> bytes:
        value, found = 2 * value, bytearray()
        while value > 127:
            found.append(value & 127 | 128)
            value >>= 7
        return bytes([*found, value])

    sizes = b"\x15" + number(kind) + b"\x15" + number(unpacked) + b"\x15" + number(packed)
    about = b"\x15" + number(values) + b"\x15" + number(encoding)
    if kind == 2:
        return sizes + b"\x4c" + about + b"\0\0"
    return sizes + b"\x2c" + about + 2 * (b"\x15" + number(3)) + b"\0\0"


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
