"""Export and import: what comes back says the same, into any number of partitions, however often."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from processor.core import message
from processor.core.clock import DAY, HOUR
from processor.core.tables import decode_value, histogram_of
from processor.log.letters import letters
from processor.log.store import Append, Log, TopicPartition
from processor.log.topics import EVENTS
from processor.state.verify import verify
from server.cli import files
from server.exporting import Exporter, Selection
from server.importing import KEPT, Importer
from tests.support.events import ABSENT, make_event
from tests.support.logs import catch_up, newest_rows, put
from tests.support.tables import NOON

ALL = Selection()


def clock() -> int:
    return NOON + 40 * DAY


def export(data_dir: Path, selection: Selection = ALL) -> list[bytes]:
    return list(Exporter(Log(data_dir, create=False), selection, lambda *_: None).lines())


def load(data_dir: Path, lines: list[bytes], partitions: int = 1) -> Importer:
    importer = Importer(Log(data_dir, partitions=partitions), clock)
    importer.run(lines)
    catch_up(data_dir)
    return importer


def tables(data_dir: Path) -> dict[str, list[int]]:
    """All rows, summed over the partitions, without the offsets."""
    sums: dict[str, list[int]] = {}
    rows = newest_rows(Log(data_dir, create=False))
    for key, value in rows.items():
        _, kind, *rest = json.loads(key)
        if kind in {"progress", "horizon"}:
            continue
        numbers = decode_value(value)[1:]
        name = json.dumps([kind, *rest])
        if name not in sums:
            sums[name] = numbers
        elif kind == "latency":
            one, other = histogram_of([0, *sums[name]]), histogram_of([0, *numbers])
            added = {bucket: one.get(bucket, 0) + other.get(bucket, 0) for bucket in sorted({*one, *other})}
            sums[name] = [number for pair in added.items() for number in pair]
        elif kind == "window":
            sums[name] = [a + b for a, b in zip(sums[name], numbers, strict=True)]
        else:
            first, last = min(sums[name][7], numbers[7]), max(sums[name][8], numbers[8])
            sums[name] = [a + b for a, b in zip(sums[name][:7], numbers[:7], strict=True)] + [first, last]
    return sums


def differences(data_dir: Path) -> Iterator[Any]:
    log = Log(data_dir, create=False)
    for number in range(log.partitions):
        scratch = data_dir / f"scratch-{number}"
        scratch.mkdir()
        yield from verify(log, number, scratch, lambda *_: None)


def identified(number: int, **changes: Any) -> dict[str, Any]:
    return make_event(
        event_id=str(UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128, version=4)), **changes
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A log of two partitions with duplicates, a conflict, unpriced events, both wires, two projects, a dead letter."""
    data = tmp_path / "source"
    log = Log(data, partitions=2)
    for number in range(40):
        put(
            log,
            [identified(5 * number + n, user_id=f"u{n}", cost_usd=0.1 * n) for n in range(8)],
            arrival=NOON + number * HOUR,
            wire="proto" if number % 3 else "json",
            key=f"key{number % 2}",
        )
    put(log, [identified(3, user_id="somebody else")], arrival=NOON + DAY)
    put(log, [identified(1000, cost_usd=ABSENT, provider="acme")], handling="lenient", arrival=NOON + DAY)
    put(log, [identified(1001), identified(1001), identified(2)], project="other", organization="o2", arrival=NOON)
    log.append([Append(TopicPartition(EVENTS, 0), [(None, b"junk")])], NOON)
    catch_up(data)
    assert len(letters(log, 0)) == 1
    return data


@pytest.mark.parametrize("partitions", [1, 2, 3])
def test_a_fresh_data_directory_gets_exactly_the_same_tables(source: Path, tmp_path: Path, partitions: int) -> None:
    lines = export(source)
    assert len(lines) == 40 * 8 + 5
    importer = load(tmp_path / "copy", lines, partitions)
    assert (importer.tally.accepted, importer.tally.rejected) == (len(lines), 0)
    before = tables(source)
    assert tables(tmp_path / "copy") == before
    assert list(differences(tmp_path / "copy")) == []
    assert sum(row[6] for name, row in before.items() if name.startswith('["user"')) == 1, "an unpriced event"
    assert sum(numbers[2] for name, numbers in before.items() if '"month"' in name and '"org"' in name) == 39 * 3 + 1, (
        "a conflict"
    )

    load(tmp_path / "copy", lines, partitions)
    again = tables(tmp_path / "copy")
    assert {name: row for name, row in again.items() if "window" not in name} == {
        name: row for name, row in before.items() if "window" not in name
    }
    assert {name: row[0] for name, row in again.items()} == {name: row[0] for name, row in before.items()}
    assert sorted(export(tmp_path / "copy")) == sorted(lines * 2)


def test_what_was_imported_into_what_it_came_from_changes_no_cost(source: Path) -> None:
    before = tables(source)
    load(source, export(source), 2)
    assert {name: row for name, row in tables(source).items() if "window" not in name} == {
        name: row for name, row in before.items() if "window" not in name
    }
    assert list(differences(source)) == []


def test_a_part_is_chosen_by_arrival_by_event_time_and_by_project(source: Path) -> None:
    day = Selection(NOON + DAY, NOON + 2 * DAY)
    arrivals = [json.loads(line)["_spendstream"]["arrival"] for line in export(source, day)]
    assert len(arrivals) == 16 * 8 + 2
    assert min(arrivals) >= "2026-04-21T12:00" < max(arrivals) < "2026-04-22T12:00"
    assert len(export(source, Selection(project="other"))) == 3
    assert len(export(source, Selection(end=NOON))) == 0
    log = Log(source, create=False)
    put(log, [identified(2000, timestamp="2020-01-01T00:00:00Z")], arrival=NOON + 3 * DAY)
    assert len(export(source, Selection(end=NOON, by="event-time"))) == 40 * 8 + 5 + 1
    [line] = export(source, Selection(end=NOON - 100 * DAY, by="event-time"))
    assert json.loads(line)["timestamp"] == "2020-01-01T00:00:00.000Z"


def test_a_message_that_cannot_be_read_and_is_no_dead_letter_is_counted(source: Path) -> None:
    log = Log(source, create=False)
    log.append([Append(TopicPartition(EVENTS, 1), [(None, b"more junk")])], NOON)
    exporter = Exporter(log, ALL, lambda *_: None)
    assert len(list(exporter.lines())) == 40 * 8 + 5
    assert (exporter.tally.dead, exporter.tally.unreadable) == (1, 1)


def test_good_lines_are_imported_beside_bad_ones(source: Path, tmp_path: Path) -> None:
    lines = export(source)[:5]
    bad = json.loads(lines[0])
    far = {**bad, "_spendstream": {**bad["_spendstream"], "arrival": "2027-01-01T00:00:00Z"}}
    bad["latency_ms"] = -1
    unnamed = {**bad, "_spendstream": {**bad["_spendstream"], "project": "a b"}}
    importer = load(
        tmp_path / "copy",
        [
            lines[0],
            b"",
            b"{",
            json.dumps(bad).encode(),
            json.dumps(far).encode(),
            lines[1],
            b" ",
            json.dumps(unnamed).encode(),
        ],
    )
    assert importer.tally.accepted == 2
    assert [(each.line, each.field, each.code) for each in importer.tally.bad] == [
        (3, None, "syntax"),
        (5, "_spendstream.arrival", "out_of_range"),
        (8, "_spendstream.project", "invalid"),
        (4, "latency_ms", "out_of_range"),
    ]
    assert importer.tally.bad[-1].event_id == bad["event_id"]
    assert sum(row[0] for name, row in tables(tmp_path / "copy").items() if name.startswith('["user"')) == 2


def test_a_dry_run_writes_nothing_and_faults_are_bounded() -> None:
    importer = Importer(None, clock)
    importer.run([b"{"] * (KEPT + 5))
    assert (importer.tally.rejected, len(importer.tally.bad)) == (KEPT + 5, KEPT)


def test_messages_are_of_a_sound_size(tmp_path: Path) -> None:
    data = tmp_path / "source"
    log = Log(data)
    for start in range(0, 1300, 100):
        put(log, [identified(start + n) for n in range(100)])
    put(log, [identified(5000 + n, parent_span_id="x" * 200_000) for n in range(4)])
    catch_up(data)
    load(tmp_path / "copy", export(data))
    records = Log(tmp_path / "copy", create=False).read(TopicPartition(EVENTS, 0), 0)
    assert [sum(map(len, message.decode(record.value or b"").blocks)) for record in records] == [500, 500, 302, 2]
    assert tables(tmp_path / "copy") == tables(data)


@pytest.mark.parametrize("name", ["events.ndjson", "events.ndjson.gz"])
def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(TypeError), files.writing(str(path)) as file:
        file.writelines([b"half\n", cast(bytes, None)])
    assert list(tmp_path.iterdir()) == []
    with files.writing(str(path)) as file:
        file.write(b"one\r\ntwo\n\nthree")
    assert path.stat().st_mode & 0o777 == 0o600
    assert (path.read_bytes()[:2] == b"\x1f\x8b") is name.endswith("gz")
    damage: list[str] = []
    assert list(files.until_damaged(str(path), lambda *_: None, damage)) == [b"one", b"two", b"", b"three"]
    assert damage == []


def test_a_damaged_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b"%d\n" % number for number in range(100_000)))
    path = tmp_path / "cut.gz"
    path.write_bytes(whole[: len(whole) // 2])
    damage: list[str] = []
    found = list(files.until_damaged(str(path), lambda *_: None, damage))
    assert found[:3] == [b"0", b"1", b"2"]
    assert len(damage) == 1
