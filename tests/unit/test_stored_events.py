"""`verify` finds what the event store has too much, too little, or not as it was written."""

import asyncio
import shutil
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from processor.core.clock import DAY
from processor.core.tables.row_sums import RowSums
from processor.event_store import stored_sums
from processor.event_store.manifest import Segment
from processor.event_store.parquet_writer import ParquetWriter
from processor.log.embedded.log import Log
from processor.log.records import TopicPartition
from processor.log.topics import EVENTS, GROUP
from processor.state.verify import Verification
from tests.support.events import make_event
from tests.support.logs import catch_up, put
from tests.support.store import StoreInProcess
from tests.support.tables import NOON

SPAN = {"kind": "span", "name": "plan", "cost_usd": 0}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A store of two partitions with copies, spans, errors and events without a user or a price."""
    path = tmp_path / "data"
    with closing(Log(path, partitions=2)) as log:
        for number in range(8):
            events = [
                make_event(
                    user_id=f"u{n % 3}" if n else None,
                    status="error" if n == 5 else "success",
                    cost_usd=n,
                    shoe_size=42,
                )
                for n in range(12)
            ]
            put(log, [*events, make_event(**SPAN), events[number]])
            put(log, events[: number // 2], project="other")
    catch_up(path)
    with closing(Log(path, create=False)) as log:
        tps = [TopicPartition(EVENTS, number) for number in range(2)]
        log.commit(GROUP, [(tp, log.end(tp)) for tp in tps])
    asyncio.run(store(path))
    return path


async def store(path: Path) -> None:
    made = StoreInProcess(path, writer=ParquetWriter)
    await made.bring([0, 1])
    made.deliver()
    await made.cut()


def test_unknown_fields_are_kept(data: Path) -> None:
    tables = [pq.read_table(path) for path in (data / "events").glob("*.parquet")]
    assert '{"shoe_size":42}' in {value for table in tables for value in table.column("extra").to_pylist()}


def problems(data: Path, scratch: Path) -> list[str]:
    found = []
    with closing(Log(data, create=False)) as log:
        for number in range(2):
            verification = Verification(log, number, scratch / str(number), lambda *_: None, None, data / "events")
            assert list(verification.run()) == []
            found += [f"{problem.kind}: {problem.text}" for problem in verification.problems]
            assert any("was compared from message 0 to" in notice for notice in verification.notices)
    return found


def test_a_store_that_is_right(data: Path, tmp_path: Path) -> None:
    assert problems(data, tmp_path / "scratch") == []


def test_a_file_that_was_changed(data: Path, tmp_path: Path) -> None:
    path = next((data / "events").glob("0000-*.parquet"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    [text] = problems(data, tmp_path / "scratch")
    assert text == f"event_store: {path} is damaged: its digest does not match"


def test_a_file_that_is_missing(data: Path, tmp_path: Path) -> None:
    path = next((data / "events").glob("0001-*.idx"))
    path.unlink()
    [text] = problems(data, tmp_path / "scratch")
    assert text.startswith(f"event_store: the event store lacks {path}")


def one_more(place: stored_sums.Place, sums: RowSums) -> tuple[stored_sums.Place, RowSums]:
    return place, RowSums(sums.requests, sums.errors, sums.input_tokens, sums.output_tokens, 0, sums.cost + 1, 0, 1, 2)


def other_user(place: stored_sums.Place, sums: RowSums) -> tuple[stored_sums.Place, RowSums]:
    return (place[0], "nobody", *place[2:]), sums


@pytest.mark.parametrize(("change", "count"), [(one_more, 1), (other_user, 2)])
def test_sums_that_differ(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[stored_sums.Place, RowSums], tuple[stored_sums.Place, RowSums]],
    count: int,
) -> None:
    add_up = stored_sums.add_up

    def changed(directory: Path, segments: Iterable[Segment], start: int, end: int) -> dict[stored_sums.Place, RowSums]:
        found = list(add_up(directory, segments, start, end).items())
        return dict([change(*found[0]), *found[1:]])

    monkeypatch.setattr(stored_sums, "add_up", changed)
    found = problems(data, tmp_path / "scratch")
    assert len(found) == 2 * count
    assert all("instead of" in text for text in found)


def without_spans(table: Any) -> Any:
    return table.filter(pc.not_equal(table.column("kind"), "span"))


def spans_twice(table: Any) -> Any:
    return pa.concat_tables([table, table.filter(pc.equal(table.column("kind"), "span"))])


def another_row(table: Any) -> Any:
    """As many rows of as many calls, but one of them is another one of its message."""
    places = table.column("log_index").to_numpy().copy()
    places[0] += 100
    name = table.schema.get_field_index("log_index")
    return table.set_column(name, table.schema.field(name), pa.array(places, pa.int32()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_spans, " rows instead of "),
        (spans_twice, " rows instead of "),
        (another_row, "not all of them the right"),
    ],
)
def test_rows_that_no_sum_shows(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any], says: str
) -> None:
    """Spans enter no sum: one that is missing, or there twice, is found by its place."""
    monkeypatch.setattr(stored_sums, "check", lambda *_: None)  # as a store would have written them
    for path in (data / "events").glob("*.parquet"):
        pq.write_table(change(pq.read_table(path)), path)
    found = problems(data, tmp_path / "scratch")
    assert [text for text in found if text.startswith("event_store: the event store has of the messages ")] == found
    assert len(found) == 2
    assert all(says in text for text in found)
    assert found[0].startswith("event_store: the event store has of the messages 0:0 to 1023: ")


async def test_payloads_past_their_time_are_left_out_at_a_rebuild_and_the_sums_stay(data: Path, tmp_path: Path) -> None:
    shutil.rmtree(data / "events")
    made = StoreInProcess(data, now=NOON + 3 * DAY, payload_retention=2, writer=ParquetWriter)
    await made.bring([0, 1])
    made.deliver()
    await made.cut()
    tables = [pq.read_table(path) for path in (data / "events").glob("*.parquet")]
    assert {value for table in tables for value in table.column("extra").to_pylist()} == {None}
    assert problems(data, tmp_path / "scratch") == []
