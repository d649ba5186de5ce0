"""Costs and tags of a row group by the kernel are those that pyarrow and numpy read."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from processor.core.kernel.loaded import kernel
from processor.event_store import segment_file
from processor.event_store.directory_storage import DirectoryStorage
from processor.event_store.manifest import Segment, segment_id
from processor.event_store.row_groups import Packing
from server.explore import column_codes, cost_column
from server.explore.segment_files import SegmentFile
from tests.fuzz.column_twins import compare, costs_of, costs_written
from tests.support.event_store import random_row, table_of

needs_kernel = pytest.mark.skipif(kernel is None, reason="the compiled kernel does not run")

NUMBERS: Final = [1, None, 2**63 - 1, 0, 255, *range(100)]


@needs_kernel
@pytest.mark.parametrize("seed", range(60))
def test_the_kernel_reads_what_its_twin_reads(seed: int) -> None:
    compare(seed)


@pytest.mark.parametrize("packing", ["none", "zstd"])
@pytest.mark.parametrize("columns", [["cost_usd"], ["model", "cost_usd", "tags"], ["model"]])
def test_a_segment_of_the_store_has_its_costs_read_that_way(
    packing: Packing, columns: list[str], tmp_path: Path
) -> None:
    rng = random.Random(1)
    rows = [random_row(rng, project="a", timestamp=at, log_offset=at, log_index=0) for at in range(3000)]
    segment = Segment(id=segment_id(0, 0, 1), partition=0, start=0, end=1, level=0)
    segment_file.write(DirectoryStorage(tmp_path), segment, [table_of(rows)], packing=packing)
    opened = SegmentFile(tmp_path / f"{segment.id}.parquet").opened_coded()
    expected, found = opened.read(0, columns), opened.read_coded(0, columns)
    for name in columns:
        assert found[name].equals(expected[name])
    if kernel is not None:
        with pa.OSFile(str(tmp_path / f"{segment.id}.parquet")) as source:
            footer = pq.read_metadata(source)
            place = [footer.schema.column(each).path for each in range(footer.num_columns)].index("cost_usd")
            assert cost_column.read_costs(source, footer, 0, place) is not None


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dictionary": True},
        {"compression": "gzip"},
        {"data_page_version": "2.0"},
        {"column_encoding": {cost_column.NAME: "DELTA_BYTE_ARRAY"}},
    ],
    ids=lambda each: next(iter(each)),
)
def test_costs_that_are_written_in_another_form_are_left_to_pyarrow(settings: dict[str, object]) -> None:
    source, footer = costs_written(costs_of(NUMBERS), **settings)
    assert cost_column.read_costs(source, footer, 0, 0) is None


@pytest.mark.parametrize(("start", "size"), [(4, 1 << 50), (1 << 62, 1 << 62), (-1, 9), (4, -1)])
def test_costs_that_do_not_lie_in_the_file_are_left_to_pyarrow(start: int, size: int) -> None:
    source, _ = costs_written(costs_of(NUMBERS))
    chunk = SimpleNamespace(
        has_dictionary_page=False, data_page_offset=start, total_compressed_size=size, total_uncompressed_size=size
    )
    footer = SimpleNamespace(row_group=lambda _: SimpleNamespace(num_rows=len(NUMBERS), column=lambda _: chunk))
    assert cost_column.read_costs(source, footer, 0, 0) is None


def test_without_the_kernel_all_is_left_to_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_column, "kernel", None)
    source, footer = costs_written(costs_of(NUMBERS))
    assert cost_column.read_costs(source, footer, 0, 0) is None


@needs_kernel
def test_pages_that_do_not_have_the_costs_are_left_to_pyarrow() -> None:
    assert kernel is not None
    there = b"\x02\x00\x00\x00" + bytes([2 << 1, 1])  # a run of two that are there
    good = there + (7).to_bytes(9, "big") + (8).to_bytes(9, "big")
    found = kernel.cost_column([(good, 2)], 2)
    assert found is not None
    assert (np.frombuffer(found[0], "<i8").tolist(), found[2]) == ([7, 0, 8, 0], 0)
    runs = [bytes([0, 1]), bytes([2 << 1, 2]), bytes([3]), bytes([9, 1]), bytes([2 << 1]), b"\x80"]
    wrong = [b"", good[:3], good[:-1], b"\xff\xff\xff\xff" + good[4:]]
    wrong += [len(each).to_bytes(4, "little") + each + bytes(18) for each in runs]
    for each in wrong:
        assert kernel.cost_column([(each, 2)], 2) is None, each
    for counts, rows in (([1], 2), ([2, 1], 2), ([-1, 3], 2), ([2], -1)):
        assert kernel.cost_column([(good, count) for count in counts], rows) is None


@pytest.mark.parametrize("is_compiled", [True, False])
def test_of_a_tag_that_is_there_twice_the_first_counts(is_compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_compiled:
        monkeypatch.setattr(column_codes, "kernel", None)
    rows = [[("a", "1"), ("team", "x"), ("team", "y")], None, [], [("team", None), ("team", "y")], [("team", "")]]
    kind = pa.map_(pa.string(), pa.string())
    for tags in (pa.array(rows, kind), pa.array([[("team", "z")], *rows], kind).slice(1)):
        codes = column_codes.tag_codes(pa.chunked_array([tags]), "team")
        assert [codes.values[place] for place in codes.places.tolist()] == ["x", None, None, None, None]
        nothing = column_codes.tag_codes(pa.chunked_array([tags]), "b")
        assert [nothing.values[place] for place in nothing.places.tolist()] == [None] * 5
