"""Rows with some ids of many row groups, read and kept, against plain Python."""

import random
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from processor.core.kernel.loaded import kernel
from server.explore import chosen_rows, far_rows
from server.explore.engine import SegmentGone
from server.explore.far_rows import FarRows, Whole
from server.explore.kept_summaries import KeptSummaries
from server.explore.segment_files import OpenFile, SegmentFile
from tests.support.event_store import NOON, Row, StoreDirectory, make_row, table_of

COLUMNS: Final = ("cost_usd", "project", "session_id", "timestamp", "trace_id")
GROUP: Final = 8
KNOWN: Final = {"project": "default"}

needs_kernel = pytest.mark.skipif(kernel is None, reason="nothing is kept without the compiled kernel")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreDirectory:
    """One segment of many row groups."""
    rng = random.Random(2)
    made = StoreDirectory(tmp_path_factory.mktemp("store") / "events", group_rows=GROUP)
    rows = [
        make_row(
            trace_id=f"t{rng.randrange(20)}",
            session_id=rng.choice([None, f"s{rng.randrange(6)}"]),
            timestamp=NOON + number,
            cost_usd=rng.choice([None, number, 10**18]),
        )
        for number in range(100)
    ]
    made.append(rows)
    return made


def expected(groups: list[list[Row]], by_group: dict[int, set[str]], through: str | None, whole: Whole) -> list[Row]:
    """The same in plain Python."""
    found = []
    for group, asked in by_group.items():
        rows = groups[group]
        if through is None:
            ids = asked - whole.get(("a", group), set())
            found += [row for row in rows if row["trace_id"] in ids]
            continue
        same = {row[through] for row in rows if row["session_id"] in asked}
        found += [row for row in rows if row[through] in same]
    return found


@pytest.mark.parametrize("through", [None, "trace_id"])
@pytest.mark.parametrize("few", [0, 5, 512], ids="few {}".format)
@pytest.mark.parametrize("room", [0, 5_000, 1 << 20], ids="room {}".format)
def test_the_rows_are_those_of_the_file_whatever_is_kept(
    store: StoreDirectory, monkeypatch: pytest.MonkeyPatch, through: str | None, few: int, room: int
) -> None:
    monkeypatch.setattr(chosen_rows, "FEW", few)
    rng, kept = random.Random(room + few), KeptSummaries(room)
    (segment,) = store.catalog.live(0)
    rows = sorted(store.rows, key=lambda row: row["timestamp"])
    groups = [rows[start : start + GROUP] for start in range(0, len(rows), GROUP)]
    column, names = ("trace_id", "t") if through is None else ("session_id", "s")
    for _ in range(12):
        by_group = {
            group: {f"{names}{rng.randrange(25)}" for _ in range(rng.randrange(1, 5))}
            for group in rng.sample(range(len(groups)), rng.choice([1, 8]))
        }
        whole: Whole = {}
        if through is None and rng.random() < 0.5:
            whole = {("a", group): {f"t{rng.randrange(20)}" for _ in range(9)} for group in by_group}
        wanted = expected(groups, by_group, through, whole)
        far = FarRows(kept, "default", column, COLUMNS, through)
        assert far.add("a", store.files.get(segment), by_group, KNOWN, whole, lambda: None)
        assert far.gathered.table().to_pylist() == _table(wanted)
        assert kept.bytes <= room
        if through is not None:
            assert whole == {
                ("a", group): {row[through] for row in expected(groups, {group: by_group[group]}, through, {})}
                for group in by_group
            }


def _table(rows: list[Row]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table_of(rows).select(COLUMNS).to_pylist()
    return found


@needs_kernel
def test_what_is_no_longer_asked_for_is_forgotten(store: StoreDirectory) -> None:
    kept, (segment,) = KeptSummaries(), store.catalog.live(0)
    for first in range(0, 2000, 100):
        far = FarRows(kept, "default", "trace_id", COLUMNS, None)
        ids = {f"t{number}" for number in range(first, first + 100)}
        assert far.add("a", store.files.get(segment), {0: ids}, KNOWN, {}, lambda: None)
    assert 50_000 < kept.bytes < 100 * (far_rows.UNASKED + 1) * 1000


@needs_kernel
def test_a_second_look_for_few_ids_leaves_what_the_first_has_found(
    store: StoreDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, (segment,) = KeptSummaries(), store.catalog.live(0)
    many, reads, real = {0: {f"t{number}" for number in range(100)}}, [0], OpenFile.find

    def find(*asked: Any) -> Any:
        reads[0] += 1
        return real(*asked)

    monkeypatch.setattr(OpenFile, "find", find)
    for by_group, whole in ((many, {}), ({0: {"t1"}}, {("a", 5): {"t2"}}), (many, {})):
        far = FarRows(kept, "default", "trace_id", COLUMNS, None)
        assert far.add("a", store.files.get(segment), by_group, KNOWN, whole, lambda: None)
    assert reads == [2]


@needs_kernel
def test_a_file_whose_rows_are_known_is_not_opened(store: StoreDirectory, tmp_path: Path) -> None:
    (segment,) = store.catalog.live(0)
    path = shutil.copy(store.files.path(segment.id), tmp_path)
    kept, file = KeptSummaries(), SegmentFile(Path(path))

    def add(trace: str) -> bool:
        far = FarRows(kept, "default", "trace_id", COLUMNS, None)
        return far.add("a", file, {0: {"t1", trace}}, KNOWN, {}, lambda: None)

    assert add("t2")
    file.path.unlink()
    assert add("t2")
    with pytest.raises(SegmentGone):
        add("t3")


def test_rows_that_are_too_many_are_given_up(store: StoreDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far_rows, "MOST_ROWS", 5)
    (segment,) = store.catalog.live(0)
    far = FarRows(KeptSummaries(), "default", "trace_id", COLUMNS, None)
    by_group = {group: {f"t{number}" for number in range(20)} for group in range(3)}
    assert not far.add("a", store.files.get(segment), by_group, KNOWN, {}, lambda: None)
    assert far.gathered.count == GROUP


def test_a_file_finds_the_same_rows_by_any_text(store: StoreDirectory) -> None:
    (segment,) = store.catalog.live(0)
    opened, rng = store.files.get(segment).opened(), random.Random(4)
    rows = sorted(store.rows, key=lambda row: row["timestamp"])
    for _ in range(40):
        group, column = rng.randrange(len(rows) // GROUP), rng.choice(["trace_id", "session_id"])
        text = rng.choice([f"t{rng.randrange(20)}", f"s{rng.randrange(6)}"])
        part = rows[group * GROUP : group * GROUP + GROUP]
        found = opened.find(group, {column: [text]})
        assert found.tolist() == [number for number, row in enumerate(part) if row[column] == text]
        values = opened.values(group, ["trace_id", "timestamp"], found)
        if values is not None:
            assert values[0] == [part[number]["trace_id"] for number in found.tolist()]
    opened.close()
