"""Large rows lie apart from small ones, and files say how many of either may be unpacked at a time."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from processor.event_store import merge, row_sizes, segment_file
from processor.event_store.compiled_take import TakenBatch
from processor.event_store.directory_storage import DirectoryStorage
from processor.event_store.manifest import Segment, segment_id
from processor.event_store.parquet_writer import ParquetWriter
from processor.event_store.row_sizes import AtOnce
from tests.fuzz.segment_twins import random_table
from tests.support.event_store import Row, make_row, plain, table_of

LARGE = 60_000


def rows_with(large: dict[int, int], count: int, part: int = 0) -> list[Row]:
    """Rows in order, of which some have an unknown field of so many bytes."""
    rng = random.Random(count + part)
    rows = []
    for place in range(count):
        size = large.get(place)
        extra = None if size is None else json.dumps({"text": f"{rng.getrandbits(4 * size):0{size}x}"})
        row = make_row(rng, project="p", extra=extra, log_partition=0, log_offset=part, log_index=place)
        rows.append(row | {"timestamp": 1000 * place})
    return rows


def prepared(rows: list[Row]) -> Any:
    return segment_file.prepared(table_of(rows))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_file, "ROW_GROUP", 16_384)
    monkeypatch.setattr(row_sizes, "AT_ONCE", 128 << 10)


def new(start: int, end: int, level: int = 0) -> Segment:
    return Segment(id=segment_id(0, start, end), partition=0, start=start, end=end, level=level)


@pytest.mark.parametrize("seed", range(20))
def test_runs_have_the_bytes_of_their_rows(seed: int) -> None:
    rng = random.Random(seed)
    table = random_table(rng)
    of_rows = row_sizes.of_runs(table, 1)
    assert len(of_rows) == table.num_rows
    rows = rng.choice([1, 2, 8, 64])
    expected = [of_rows[start : start + rows].sum() for start in range(0, table.num_rows, rows)]
    assert row_sizes.of_runs(table, rows).tolist() == expected
    texts = pc_bytes(table.column("extra")) + pc_bytes(table.column("trace_id"))
    assert of_rows.sum() > texts


def pc_bytes(column: Any) -> int:
    return sum(len(text.encode()) for text in column.to_pylist() if text)


def test_texts_of_a_large_dictionary_count_for_each_row() -> None:
    table = prepared(rows_with({}, 300))
    before = row_sizes.of_runs(table, 100)
    place = table.schema.get_field_index("sdk_version")
    texts = [None if number % 3 == 0 else f"{number:01000}" for number in range(300)]
    table = table.set_column(place, table.schema.field(place), pa.array(texts).dictionary_encode())
    assert (row_sizes.of_runs(table, 100) - before).tolist() == [66_000, 67_000, 67_000]


@pytest.mark.usefixtures("small")
def test_large_rows_are_row_groups_of_their_own() -> None:
    table = prepared(rows_with(dict.fromkeys(range(300, 320), LARGE), 1000))
    assert [part.num_rows for part in row_sizes.stretches(table)] == [256, 128, 616]
    assert pa.concat_tables(row_sizes.stretches(table)).equals(table)
    even = prepared(rows_with({}, 1000))
    assert [part.num_rows for part in row_sizes.stretches(even)] == [1000]
    all_large = prepared(rows_with(dict.fromkeys(range(300), LARGE), 300))
    assert [part.num_rows for part in row_sizes.stretches(all_large)] == [300]


@pytest.mark.usefixtures("small")
def test_a_row_that_is_larger_than_others_together_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_sizes, "ALONE", 200_000)
    table = prepared(rows_with({140: 300_000, 299: 300_000}, 300))
    assert [part.num_rows for part in row_sizes.stretches(table)] == [128, 12, 1, 158, 1]


@pytest.mark.usefixtures("small")
def test_of_uneven_rows_few_are_unpacked_at_a_time() -> None:
    even = prepared(rows_with({}, 1000))
    assert row_sizes.at_once(even, 500) is None
    uneven = prepared(rows_with(dict.fromkeys(range(40, 60), LARGE), 128))
    found = row_sizes.at_once(uneven, 10_000)
    assert found is not None
    assert found.rows == 2
    assert 2 * LARGE < found.bytes < 128 << 10
    sizes = row_sizes.RowSizes()
    sizes.add(even)
    assert set(sizes.metadata()) == {"spendstream.row_bytes"}
    sizes.add(uneven)
    said = row_sizes.said({key.encode(): value.encode() for key, value in sizes.metadata().items()}, 2)
    assert said is not None
    assert said[1] == found
    assert said[0].rows >= 128


@pytest.mark.parametrize("text", [b"", b"1:2", b"1:2,x:3", b"1:2,3", b"1:2,3:4,5:6"])
def test_what_cannot_be_read_of_a_file_is_not_believed(text: bytes) -> None:
    assert row_sizes.said({b"spendstream.rows_at_once": text}, 2) is None


def test_what_a_file_says_is_at_least_one() -> None:
    assert row_sizes.said({b"spendstream.rows_at_once": b"0:0,4:9"}, 2) == [AtOnce(1, 1), AtOnce(4, 9)]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("way", ["compiled", "pure"])
def test_a_merge_holds_few_bytes_of_large_rows_at_the_same_time(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of forty segments, each with 230 events of 256 KiB at the same time, it held all of them."""
    monkeypatch.setattr(segment_file, "GROUP_BYTES", 500_000)
    monkeypatch.setattr(merge, "BATCH_BYTES", 8 * (128 << 10))
    if way == "pure":
        monkeypatch.setattr(merge, "kernel", None)
    writer, parts, rows = ParquetWriter(tmp_path), [], []
    for part in range(8):
        own = rows_with(dict.fromkeys(range(300, 330), LARGE), 600, part)
        for row in own[300:330]:
            row["timestamp"] = 300_000
        parts.append(segment_file.write(DirectoryStorage(tmp_path), new(part, part + 1), [prepared(own)]))
        rows += own
    held: list[int] = []
    batches: list[int] = []

    def counted(batch: Any) -> TakenBatch:
        batches.append(batch.nbytes)
        return TakenBatch(batch)

    table_of_rows = vars(merge)["_table"]

    def measured(own: Any, homes: Any, taking: Any) -> Any:
        held.append(sum({id(each.rows.piece): each.rows.piece.batch.nbytes for each in own}.values()))
        return table_of_rows(own, homes, taking)

    monkeypatch.setattr(merge, "TakenBatch", counted)
    monkeypatch.setattr(merge, "_table", measured)
    tables = list(merge.merged([tmp_path / f"{part.id}.parquet" for part in parts]))
    expected = sorted(rows, key=lambda row: (row["timestamp"], row["log_offset"], row["log_index"]))
    assert [plain(row) for table in tables for row in table.to_pylist(maps_as_pydicts="strict")] == expected
    assert max(batches) < 200_000
    assert max(held) < 2_500_000  # of 14 MB
    assert max(table.nbytes for table in tables) < 1_000_000
    merged = writer.merge(parts, new(0, 8, 1), 0)
    footer = pq.read_metadata(tmp_path / f"{merged.id}.parquet")
    assert row_sizes.said(footer.metadata, footer.num_row_groups) is not None
    found = pq.read_table(tmp_path / f"{merged.id}.parquet").to_pylist(maps_as_pydicts="strict")
    assert [plain(row) for row in found] == expected
