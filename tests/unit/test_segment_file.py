"""Segments on the disk: their rows in order, what their manifests say of them, the index of their ids, and merging."""

import json
import os
import random
import tracemalloc
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from processor.event_store import id_index, merge, parquet_writer, row_groups, segment_file, user_counts
from processor.event_store.compiled_take import TakenBatch
from processor.event_store.directory_storage import DirectoryStorage
from processor.event_store.id_index import SHORT, IndexBuilder, IndexDamaged, SegmentIndex
from processor.event_store.manifest import ProjectSums, Segment, segment_id
from processor.event_store.merge import SegmentUnreadable
from processor.event_store.parquet_writer import ParquetWriter
from processor.event_store.schema import SCHEMA, WRITTEN
from processor.event_store.user_counts import Tally, UserCounts, key_of
from server.errors import Refused
from server.explore.dispatch import open_index
from server.explore.segment_files import SegmentFiles
from tests.support.event_store import UNCOUNTED, Row, plain, random_row, table_of
from tests.support.examples import examples


def key(row: Row) -> tuple[Any, ...]:
    return row["project"], row["timestamp"], row["log_offset"], row["log_index"]


def made(rng: random.Random, count: int, start: int, end: int, **overrides: Any) -> list[Row]:
    """Rows of the messages from `start` to `end`, in the order of segments."""
    found = [random_row(rng, **overrides) for _ in range(count)]
    for number, row in enumerate(found):
        row.update(log_partition=0, log_offset=start + number * (end - start) // count, log_index=number)
    return sorted(found, key=key)


def new(start: int, end: int, level: int = 0) -> Segment:
    return Segment(id=segment_id(0, start, end), partition=0, start=start, end=end, level=level, claims_from=7)


def write(directory: Path, rows: list[Row], start: int, end: int) -> Segment:
    return segment_file.write(DirectoryStorage(directory), new(start, end), [table_of(rows)])


def read(directory: Path, segment: Segment) -> list[Row]:
    return [
        plain(row) for row in pq.read_table(directory / f"{segment.id}.parquet").to_pylist(maps_as_pydicts="strict")
    ]


def sums_of(rows: list[Row]) -> list[ProjectSums]:
    found: dict[str, list[tuple[int, Row]]] = defaultdict(list)
    for number, row in enumerate(rows):
        found[row["project"]].append((number, row))
    return [_sums(project, numbered) for project, numbered in found.items()]


def _sums(project: str, numbered: list[tuple[int, Row]]) -> ProjectSums:
    rows = [row for _, row in numbered]
    calls = [row for row in rows if row["kind"] == "call"]
    return ProjectSums(
        project=project,
        rows=len(rows),
        calls=len(calls),
        errors=sum(row["status"] in {"error", "timeout", "rate_limited"} for row in calls),
        **{name: sum(row[name] or 0 for row in calls) for name in ("input_tokens", "output_tokens", "cached_tokens")},
        cost=sum(row["cost_usd"] or 0 for row in calls),
        unpriced=sum(row["cost_usd"] is None for row in calls),
        time_min=min(row["timestamp"] for row in rows),
        time_max=max(row["timestamp"] for row in rows),
        first_row=numbered[0][0],
    )


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_file, "ROW_GROUP", 8)
    monkeypatch.setattr(merge, "BATCH", 3)
    monkeypatch.setattr(user_counts, "MANY", 2)


def test_a_segment_says_what_is_in_it(tmp_path: Path) -> None:
    rows = made(random.Random(1), 100, 10, 20)
    segment = write(tmp_path, rows, 10, 20)
    assert read(tmp_path, segment) == rows
    assert list(segment.projects) == sums_of(rows)
    assert (segment.rows, segment.calls) == (100, sum(row["kind"] == "call" for row in rows))
    assert (segment.start, segment.end, segment.claims_from) == (10, 20, 7)
    for name, low, high in (("received_at", segment.arrival_min, segment.arrival_max),):
        assert (min(row[name] for row in rows), max(row[name] for row in rows)) == (low, high)
    parquet, index = (tmp_path / f"{segment.id}{suffix}" for suffix in (".parquet", ".idx"))
    assert (parquet.stat().st_size, index.stat().st_size) == (segment.parquet_bytes, segment.index_bytes)
    assert {each.name for each in tmp_path.iterdir()} == {parquet.name, index.name}
    assert pq.read_schema(parquet).equals(SCHEMA)
    assert pq.read_schema(parquet).metadata[b"spendstream.schema"] == b"1"


def test_a_row_group_of_large_rows_has_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_file, "ROW_GROUP", 16_384)
    monkeypatch.setattr(segment_file, "GROUP_BYTES", 1 << 20)
    rng = random.Random(8)
    parts, rows = [], []
    for start in (0, 5):
        large = made(rng, 30, start, start + 5)
        for row in large:
            row["extra"] = json.dumps({"text": f"{rng.getrandbits(400_000):0100000x}"})
        parts.append(write(tmp_path, large, start, start + 5))
        rows += large
    merged = ParquetWriter(tmp_path).merge(parts, new(0, 10, 1), 0)
    assert read(tmp_path, merged) == sorted(rows, key=key)
    for segment in (*parts, merged):
        footer = pq.read_metadata(tmp_path / f"{segment.id}.parquet")
        groups = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
        assert max(groups) in (9, 10)  # of 100,000 bytes each
        assert sum(groups) == segment.rows


@pytest.mark.slow
def test_large_rows_beside_many_small_ones_are_merged_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their mean says nothing of a table that has the large ones: of 16,384 there were gigabytes."""
    monkeypatch.setattr(segment_file, "ROW_GROUP", 16_384)
    monkeypatch.setattr(segment_file, "GROUP_BYTES", 1 << 20)
    rng = random.Random(9)
    small = made(rng, 2000, 0, 5, project="p", extra=None)
    large = made(rng, 100, 5, 10, project="p")
    for place, row in enumerate(large):
        row.update(
            timestamp=small[1000]["timestamp"], extra=json.dumps({"text": f"{rng.getrandbits(400_000):0100000x}"})
        )
        row["log_index"] = place
    large.sort(key=key)
    parts = [write(tmp_path, small, 0, 5), write(tmp_path, large, 5, 10)]
    tables = list(merge.merged([tmp_path / f"{part.id}.parquet" for part in parts]))
    assert [plain(row) for table in tables for row in table.to_pylist(maps_as_pydicts="strict")] == sorted(
        small + large, key=key
    )
    assert max(table.nbytes for table in tables) < 2 << 20


@pytest.mark.parametrize("way", ["compiled", "pure"])
def test_a_large_row_of_each_of_many_segments_makes_no_large_table(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of a row group says nothing of them: of 40 segments there were tables of a gigabyte."""
    monkeypatch.setattr(segment_file, "ROW_GROUP", 16_384)
    monkeypatch.setattr(segment_file, "GROUP_BYTES", 300_000)
    monkeypatch.setattr(merge, "MOST_TAKEN", 400_000)
    monkeypatch.setattr(merge, "BATCH", 64)
    if way == "pure":
        monkeypatch.setattr(merge, "kernel", None)
    rng, parts, rows = random.Random(13), [], []
    for part in range(8):
        own = made(rng, 200, 5 * part, 5 * part + 5, project="p", extra=None)
        for place, row in enumerate(own):
            row["timestamp"] = place
        own[100]["extra"] = json.dumps({"text": f"{rng.getrandbits(400_000):0100000x}"})
        parts.append(write(tmp_path, own, 5 * part, 5 * part + 5))
        rows += own
    tables = list(merge.merged([tmp_path / f"{part.id}.parquet" for part in parts]))
    expected = sorted(rows, key=key)
    assert [plain(row) for table in tables for row in table.to_pylist(maps_as_pydicts="strict")] == expected
    assert max(table.nbytes for table in tables) < 400_000
    merged = ParquetWriter(tmp_path).merge(parts, new(0, 40, 1), 0)
    assert read(tmp_path, merged) == expected


def test_large_texts_that_come_again_are_merged_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file has them once, as a dictionary, and says little of what its rows take in memory."""
    monkeypatch.setattr(segment_file, "ROW_GROUP", 16_384)
    monkeypatch.setattr(segment_file, "GROUP_BYTES", 1 << 20)
    monkeypatch.setattr(merge, "BATCH", 8192)
    monkeypatch.setattr(merge, "BATCH_BYTES", 1 << 20)
    rng, tools = random.Random(10), [f"{number:0500}" for number in range(200)]
    rows = [made(rng, 60, start, start + 5, tools_used=tools) for start in (0, 5)]
    parts = [write(tmp_path, each, 5 * place, 5 * place + 5) for place, each in enumerate(rows)]
    unpacked: list[int] = []

    def measured(batch: Any) -> TakenBatch:
        unpacked.append(batch.nbytes)
        return TakenBatch(batch)

    monkeypatch.setattr(merge, "TakenBatch", measured)
    tables = list(merge.merged([tmp_path / f"{part.id}.parquet" for part in parts]))
    assert [plain(row) for table in tables for row in table.to_pylist(maps_as_pydicts="strict")] == sorted(
        rows[0] + rows[1], key=key
    )
    assert max(table.nbytes for table in tables) < 2 << 20
    assert max(unpacked) < 1 << 19  # of two files, half of it each


def test_rows_are_read_by_powers_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For 100 rows Arrow makes room for 128 of each column."""
    monkeypatch.setattr(segment_file, "ROW_GROUP", 300)
    monkeypatch.setattr(merge, "BATCH", 100)
    part = write(tmp_path, made(random.Random(11), 300, 0, 5), 0, 5)
    read: list[int] = []

    def counted(batch: Any) -> TakenBatch:
        read.append(len(batch))
        return TakenBatch(batch)

    monkeypatch.setattr(merge, "TakenBatch", counted)
    [table] = merge.merged([tmp_path / f"{part.id}.parquet"])
    assert table.num_rows == 300
    assert read == [64, 64, 64, 64, 44]


def test_sums_beyond_64_bits_are_exact(tmp_path: Path) -> None:
    large = {"input_tokens": 2**53 - 1, "cost_usd": 10**18, "kind": "call", "project": "p"}
    rows = made(random.Random(2), 2000, 0, 1, **large)
    segment = write(tmp_path, rows, 0, 1)
    assert segment.projects[0].cost == 2000 * 10**18
    assert segment.projects[0].input_tokens == 2000 * (2**53 - 1)


def test_a_segment_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    with segment_file.SegmentFileWriter(DirectoryStorage(tmp_path), new(0, 1)) as writer:
        writer.add(table_of(made(random.Random(3), 20, 0, 1)))
    assert list(tmp_path.iterdir()) == []


def test_payload_past_its_time_is_left_out(tmp_path: Path) -> None:
    rows = made(random.Random(4), 60, 0, 3, error_message="failed", extra='{"a":1}')
    before = sorted(row["received_at"] for row in rows)[30]
    writer = ParquetWriter(tmp_path)
    parts = [write(tmp_path, rows, 0, 3)]
    merged = writer.merge(parts, new(0, 3, 1), before)
    for row, kept in zip(read(tmp_path, merged), rows, strict=True):
        is_old = kept["received_at"] < before
        assert row == kept | ({"error_message": None, "extra": None} if is_old else {})


@pytest.mark.slow
@examples(60)
@given(st.integers(0, 2**32), st.integers(1, 6), st.sampled_from([1, 7, 8, 30]), st.booleans())
def test_merged_rows_are_those_of_the_parts_in_order(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, most: int, same: bool
) -> None:
    rng, directory = random.Random(seed), tmp_path_factory.mktemp("segments")
    overrides = {"timestamp": 5_000_000} if same else {}
    parts, rows = [], []
    for number in range(count):
        chosen = made(rng, rng.randint(1, most), 10 * number, 10 * number + 10, **overrides)
        parts.append(write(directory, chosen, 10 * number, 10 * number + 10))
        rows += chosen
    merged = ParquetWriter(directory).merge(parts, new(0, 10 * count, 1), 0)
    rows.sort(key=key)
    assert read(directory, merged) == rows
    assert list(merged.projects) == sums_of(rows)
    groups = pq.read_metadata(directory / f"{merged.id}.parquet")
    assert [groups.row_group(each).num_rows for each in range(groups.num_row_groups)][:-1] == [8] * (
        len(rows) // 8
    ) or (len(rows) % 8 == 0)
    finds_every_id(directory, merged, rows)
    counts_users_of_many_groups(directory, merged, rows)


def counts_users_of_many_groups(directory: Path, segment: Segment, rows: list[Row]) -> None:
    index = SegmentIndex(directory / f"{segment.id}.idx")
    homes: dict[tuple[str, str], set[int]] = defaultdict(set)
    events, calls = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for number, row in enumerate(rows):
        user = row["project"], row["user_id"]
        homes[user].add(number // 8)
        events[user] += 1
        calls[user] += row["kind"] == "call"
    for project in {project for project, _ in homes}:
        for name in ("u1", "u2", UNCOUNTED, ""):
            user = project, name
            wanted = Tally(events[user], calls[user]) if len(homes.get(user, ())) > 2 else None
            assert index.tally(*user) == wanted


def finds_every_id(directory: Path, segment: Segment, rows: list[Row]) -> None:
    index = SegmentIndex(directory / f"{segment.id}.idx")
    kinds: list[id_index.Kind] = ["event", "trace", "session", "user"]
    for kind in kinds:
        homes: dict[str, set[int]] = defaultdict(set)
        for number, row in enumerate(rows):
            if row[f"{kind}_id"] is not None:
                homes[row[f"{kind}_id"]].add(number // 8)
        for text, groups in homes.items():
            assert groups <= set(index.row_groups(kind, text))
            assert index.row_groups(kind, text) == sorted(set(index.row_groups(kind, text)))
        assert index.row_groups(kind, "00000000-0000-4000-8000-000000000000") == []
        if kind != "event":
            has_the_entries(index, kind, [*homes][::2])
    assert index.row_groups("event", "no id") == []


def has_the_entries(index: SegmentIndex, kind: id_index.Kind, texts: list[str]) -> None:
    """Whether all ids together are where each of them is."""
    wanted = np.unique(id_index.text_hashes(texts))
    hashes, groups = index.entries(kind, id_index.SoughtHashes(wanted))
    named = {
        (each, group)
        for each, text in zip(id_index.text_hashes(texts).tolist(), texts, strict=True)
        for group in index.row_groups(kind, text)
    }
    assert sorted(zip(hashes.tolist(), groups.tolist(), strict=True)) == sorted(named)


@pytest.mark.slow
@pytest.mark.parametrize("marked", [0, 10**9])
def test_an_index_of_many_pages_finds_all_and_little_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marked: int
) -> None:
    monkeypatch.setattr(id_index, "_MARKED", marked)
    builder, texts = IndexBuilder(), [f"trace-{number}" for number in range(3 * id_index.PAGE)]
    for group in range(24):
        builder.add(group, "trace", id_index.text_hashes([*texts[group * 512 : group * 512 + 512], "everywhere"]))
    (tmp_path / "a.idx").write_bytes(b"".join(builder.encode()))
    index = SegmentIndex(tmp_path / "a.idx")
    assert index.row_groups("trace", "everywhere") == list(range(24))
    for number in range(0, len(texts), 3):
        assert number // 512 in index.row_groups("trace", texts[number])
    others = [f"other-{number}" for number in range(30_000)]
    assert sum(bool(index.row_groups("trace", text)) for text in others) <= 5
    assert len(index.entries("trace", id_index.SoughtHashes(np.unique(id_index.text_hashes(others))))[0]) <= 5
    for some in ([*texts[4000:4100], "everywhere"], texts[::1000], texts[7000:7001], others[:50], [], texts):
        has_the_entries(index, "trace", some)
    has_the_entries(index, "user", texts[::100])
    assert index.row_groups("user", "everywhere") == []


def test_a_look_up_reads_a_page_and_keeps_no_file_open_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = IndexBuilder()
    for group in range(8):
        builder.add(group, "trace", id_index.text_hashes([f"{group}-{number}" for number in range(id_index.PAGE)]))
    (tmp_path / "a.idx").write_bytes(b"".join(builder.encode()))
    index, read, pread = SegmentIndex(tmp_path / "a.idx"), list[int](), os.pread
    (tmp_path / "a.idx").unlink()  # by a merge, or by retention

    def counted(file: int, size: int, start: int) -> bytes:
        read.append(size)
        return pread(file, size, start)

    monkeypatch.setattr(os, "pread", counted)
    assert 5 in index.row_groups("trace", "5-77")
    assert sum(read) <= 2 * 6 * id_index.PAGE  # the hash may be the first one of the second page
    descriptor = index._file  # noqa: SLF001 - nothing else says whether it is closed
    del index
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_an_index_that_has_shrunk_since_it_was_opened_is_damaged(tmp_path: Path) -> None:
    builder = IndexBuilder()
    builder.add(0, "trace", id_index.text_hashes(["t"]))
    path = tmp_path / "a.idx"
    path.write_bytes(b"".join(builder.encode()))
    index = SegmentIndex(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(IndexDamaged, match="checksum"):
        index.row_groups("trace", "t")


@pytest.mark.parametrize("short", [SHORT, 0])
def test_the_sound_index_of_another_segment_is_damage(
    short: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no name: by it rows of the segment were not found, until a scrub."""
    monkeypatch.setattr(id_index, "SHORT", short)
    rng = random.Random(7)
    one, other = (write(tmp_path, made(rng, 40 * (1 + more), more, more + 1), more, more + 1) for more in (0, 1))
    files = SegmentFiles(tmp_path, open_index)
    [trace] = {row["trace_id"] for row in read(tmp_path, one)[:1]}
    assert files.groups_with(one, "trace", [trace])
    theirs = (tmp_path / f"{other.id}.idx").read_bytes()
    (tmp_path / f"{one.id}.idx").write_bytes(theirs)
    with pytest.raises(Refused, match=f"damaged or cannot be read: {one.id}.idx; `spendstream verify` says more"):
        SegmentFiles(tmp_path, open_index).groups_with(one, "trace", [trace])
    assert SegmentFiles(tmp_path, open_index).groups_with(other, "trace", [trace]) is not None


def test_a_short_index_of_the_same_size_is_told_by_its_digest(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        builder = IndexBuilder()
        builder.add(0, "trace", id_index.text_hashes([name]))
        found.append(b"".join(builder.encode()))
        (tmp_path / name).write_bytes(found[-1])
    mine, theirs = found
    assert len(mine) == len(theirs)
    index = SegmentIndex(tmp_path / "a")
    index.check(len(mine), xxhash.xxh3_128_hexdigest(mine))
    with pytest.raises(IndexDamaged, match="the index a is damaged: it is not that of its segment: its digest"):
        index.check(len(theirs), xxhash.xxh3_128_hexdigest(theirs))
    with pytest.raises(IndexDamaged, match=f"it has {len(mine)} bytes, and that of its segment {len(mine) + 1}"):
        index.check(len(mine) + 1, "")


def test_users_of_many_pages_are_told_apart_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_index, "hashes_at", lambda data, starts, ends: (ends - starts).astype(np.uint32))
    numbers = np.arange(3 * id_index.PAGE)
    builder = IndexBuilder()
    builder.set_counts(
        UserCounts(pa.array([key_of("p", f"user-{number}") for number in numbers]), numbers + 5, numbers)
    )
    (tmp_path / "a.idx").write_bytes(b"".join(builder.encode()))
    index = SegmentIndex(tmp_path / "a.idx")
    for number in [*range(0, 3 * id_index.PAGE, 77), 3 * id_index.PAGE - 1]:
        assert index.tally("p", f"user-{number}") == (number + 5, number)
    assert index.tally("p", "user-99999") is None
    assert index.tally("", "p\0user-1"[1:]) is None


def test_an_index_without_counts_is_one_that_older_programs_read(tmp_path: Path) -> None:
    rows = made(random.Random(5), 60, 0, 3)
    segment = write(tmp_path, rows, 0, 3)
    path = tmp_path / f"{segment.id}.idx"
    assert path.read_bytes().startswith(id_index.OLDER)
    counted = IndexBuilder()
    counted.set_counts(UserCounts(pa.array([key_of("default", "u1")]), np.ones(1, np.int64), np.ones(1, np.int64)))
    assert counted.encode()[0].startswith(id_index.MAGIC)
    finds_every_id(tmp_path, segment, rows)
    assert SegmentIndex(path).tally("default", "u1") is None


def test_of_users_that_seldom_come_again_none_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made(random.Random(6), 90, 0, 3, project="p", user_id="u1")
    for number, row in enumerate(rows[:40]):
        row["user_id"] = f"user-{number}"
    parts = [write(tmp_path, rows, 0, 3)]
    for most, wanted in ((1 << 20, (50, sum(row["kind"] == "call" for row in rows[40:]))), (200, None)):
        monkeypatch.setattr(user_counts, "MOST_BYTES", most)
        merged = ParquetWriter(tmp_path).merge(parts, new(0, 3, 1), 0)
        assert SegmentIndex(tmp_path / f"{merged.id}.idx").tally("p", "u1") == wanted
        parts = [merged]


def test_any_damage_to_an_index_is_named_or_changes_nothing(tmp_path: Path) -> None:
    rows = made(random.Random(5), 60, 0, 3)
    segment = write(tmp_path, rows, 0, 3)
    path = tmp_path / f"{segment.id}.idx"
    whole = path.read_bytes()
    rng = random.Random(6)
    for _ in range(300):
        damaged = bytearray(whole)
        place = rng.randrange(len(whole))
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged[: rng.choice([len(damaged), len(damaged), place])])
        with suppress(IndexDamaged):
            finds_every_id(tmp_path, segment, rows)


def test_small_segments_of_the_first_level_are_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_writer, "MOST_UNPACKED", 60)
    parts = [write(tmp_path, made(random.Random(9), 30, start, start + 5), start, start + 5) for start in (0, 5, 10)]
    writer = ParquetWriter(tmp_path)
    merged = [
        writer.merge(parts[:2], new(0, 10, 1), 0),
        writer.merge(parts[:2], new(0, 10, 2), 0),
        writer.merge(parts, new(0, 15, 1), 0),
    ]
    for segment, expected in zip(merged, ["UNCOMPRESSED", "ZSTD", "ZSTD"], strict=True):
        footer = pq.read_metadata(tmp_path / f"{segment.id}.parquet")
        assert footer.row_group(0).column(0).compression == expected


def test_a_damaged_part_stops_the_merging_by_name(tmp_path: Path) -> None:
    parts = [write(tmp_path, made(random.Random(7), 30, start, start + 5), start, start + 5) for start in (0, 5)]
    path = tmp_path / f"{parts[1].id}.parquet"
    path.write_bytes(b"PAR1" + np.random.default_rng(1).bytes(2000))
    with pytest.raises(SegmentUnreadable, match=parts[1].id):
        ParquetWriter(tmp_path).merge(parts, new(0, 10, 1), 0)
    assert not [each for each in tmp_path.iterdir() if each.suffix == ".new"]


def test_damage_that_can_be_read_stops_the_merging_too(tmp_path: Path) -> None:
    """Else another digest would be made of the wrong values, and nothing could ever find them again."""
    parts = [
        write(tmp_path, made(random.Random(7), 30, start, start + 5, model="gpt-4o"), start, start + 5)
        for start in (0, 5)
    ]
    path = tmp_path / f"{parts[1].id}.parquet"
    path.write_bytes(path.read_bytes().replace(b"gpt-4o", b"gpt-4x"))
    assert {row["model"] for row in read(tmp_path, parts[1])} == {"gpt-4x"}
    with pytest.raises(SegmentUnreadable, match=parts[1].id):
        ParquetWriter(tmp_path).merge(parts, new(0, 10, 1), 0)
    assert not [each for each in tmp_path.iterdir() if each.suffix == ".new"]


def test_a_part_without_its_file_stops_the_merging_by_name(tmp_path: Path) -> None:
    parts = [write(tmp_path, made(random.Random(7), 30, start, start + 5), start, start + 5) for start in (0, 5)]
    (tmp_path / f"{parts[0].id}.parquet").unlink()
    with pytest.raises(SegmentUnreadable, match=parts[0].id):
        ParquetWriter(tmp_path).merge(parts, new(0, 10, 1), 0)


def test_segments_that_follow_each_other_are_merged_a_row_group_at_a_time(tmp_path: Path) -> None:
    parts = []
    for number in range(8):
        rows = made(random.Random(number), 80, number, number + 1, project="p")
        for place, row in enumerate(rows):
            row["timestamp"] = number * 1000 + place
        parts.append(write(tmp_path, rows, number, number + 1))
    tables = list(merge.merged([tmp_path / f"{part.id}.parquet" for part in parts]))
    assert sum(table.num_rows for table in tables) == 640
    assert max(table.num_rows for table in tables) == 8


HOSTILE = ("finish_reason", "sdk_version", "model", "session_id")
_pools: list[Any] = []
"""What was allocated of them refers to them."""


def hostile_table(start: int, count: int) -> Any:
    """Rows whose texts are all different, also of columns that have few values."""
    [one] = made(random.Random(1), 1, 0, 1, project="default")
    table = table_of([one]).take(pa.array(np.zeros(count, np.int64))).combine_chunks()
    numbers = range(start, start + count)
    columns: dict[str, Any] = {name: pa.array([f"{name} {each:300}" for each in numbers]) for name in HOSTILE}
    columns |= {"log_offset": pa.array(numbers), "timestamp": pa.array(numbers).cast(pa.timestamp("us", "UTC"))}
    for name, column in columns.items():
        field = WRITTEN.field(name)
        found = column.dictionary_encode() if pa.types.is_dictionary(field.type) else column
        table = table.set_column(table.schema.get_field_index(name), field, found.cast(field.type))
    return table


def peak_of_merge(directory: Path, size: int) -> tuple[int, Path]:
    """Merge four segments of so many rows; return the most bytes that Arrow and Python had, and the file."""
    storage = DirectoryStorage(directory)
    parts = [segment_file.write(storage, new(n, n + 1), [hostile_table(size * n, size)]) for n in range(4)]
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    _pools.append(pool)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        segment = ParquetWriter(directory).merge(parts, new(0, 4, 1), 0)
        python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    return pool.max_memory() + python, directory / f"{segment.id}.parquet"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["compiled", "pure"])
def test_a_merge_of_texts_that_are_all_different_holds_a_few_of_them(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns of few values had one dictionary of all texts of a merge, and one of all that was read of each file."""
    monkeypatch.setattr(segment_file, "ROW_GROUP", 1000)
    monkeypatch.setattr(merge, "BATCH", 256)
    if way == "pure":
        for module in (merge, row_groups):
            monkeypatch.setattr(module, "kernel", None)
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    few, _ = peak_of_merge(tmp_path / "few", 2000)
    many, path = peak_of_merge(tmp_path / "many", 6000)
    assert many < 1.3 * few
    expected = pa.concat_tables([hostile_table(6000 * n, 6000) for n in range(4)]).cast(SCHEMA)
    assert pq.read_table(path).select(HOSTILE).equals(expected.select(HOSTILE))
    texts = ", ".join(HOSTILE)
    query = f"select {texts} from read_parquet('{path}') order by log_offset"
    with duckdb.connect() as connection:
        rows = connection.execute(query).fetchall()
    assert rows == list(zip(*(expected.column(name).to_pylist() for name in HOSTILE), strict=True))
