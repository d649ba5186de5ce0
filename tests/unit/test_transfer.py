"""Export and import: what comes back says the same, into any number of partitions, however often."""

import gzip
import json
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from processor.core.clock import DAY, HOUR
from processor.core.events import codec, message
from processor.core.events.export_line import MAX_LINE
from processor.core.events.message import build_blocks
from processor.core.events.source import Source
from processor.core.tables.table_rows import decode_value, histogram_of
from processor.log.dead_letters import letters
from processor.log.embedded.log import Log
from processor.log.records import Append, TopicPartition
from processor.log.topics import EVENTS
from processor.state.verify import verify
from server.backup.exporter import Exporter, Selection
from server.backup.importer import KEPT, Importer
from server.cli import files
from tests.support.events import ABSENT, make_event, to_json_line, to_proto
from tests.support.logs import catch_up, newest_rows, put
from tests.support.patience import PROCESS_PATIENCE
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
            payload="protobuf" if number % 3 else "json",
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
    assert [len(message.decode(record.value or b"")) for record in records] == [500, 500, 302, 2]
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


def read(path: Path, data: bytes) -> tuple[list[bytes], list[str]]:
    """The lines of a file of these bytes, and what is said to be wrong with it."""
    path.write_bytes(data)
    damage: list[str] = []
    return list(files.until_damaged(str(path), lambda *_: None, damage)), damage


NUMBERS = b"".join(b"%d\n" % (number * 7919 % 100_003) for number in range(200_000))


@pytest.mark.parametrize("percent", [0.05, 1, 13, 50, 90, 99.9])
def test_of_a_file_that_is_cut_off_every_line_that_can_be_read_is_read(tmp_path: Path, percent: float) -> None:
    packed = gzip.compress(NUMBERS)
    part = packed[: int(len(packed) * percent / 100)]
    readable = zlib.decompressobj(31).decompress(part)
    found, damage = read(tmp_path / "cut.gz", part)
    assert found == [line for line in readable.split(b"\n") if line]
    assert len(damage) == 1
    assert "cut off" in damage[0]


def test_of_a_file_with_a_flipped_bit_everything_before_it_is_read(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(NUMBERS, 1))
    packed[len(packed) // 2] ^= 0xFF
    stream = zlib.decompressobj(31)
    readable = bytearray()
    with suppress(zlib.error):
        for at in range(len(packed)):
            readable += stream.decompress(packed[at : at + 1])
    found, damage = read(tmp_path / "flipped.gz", bytes(packed))
    assert b"\n".join(found) == readable.rstrip(b"\n")
    assert len(found) > 1000
    assert len(damage) == 1
    assert "damaged" in damage[0]


def test_a_mark_at_the_beginning_members_padding_and_a_missing_suffix_are_fine(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    wanted = [b"one", b"two", mark + b"three"]
    text = mark + b"one\r\ntwo\n" + mark + b"three"
    assert read(tmp_path / "plain", text) == (wanted, [])
    assert read(tmp_path / "packed.gz", gzip.compress(text)) == (wanted, [])
    assert read(tmp_path / "no-suffix", gzip.compress(text)) == (wanted, [])
    members = b"".join(gzip.compress(text[at : at + 5]) for at in range(0, len(text), 5))
    assert read(tmp_path / "members.gz", members + bytes(70_000)) == (wanted, [])
    many = b"".join(gzip.compress(b"%d\n" % number) for number in range(10_000))
    assert read(tmp_path / "many.gz", many) == ([b"%d" % number for number in range(10_000)], [])
    found, damage = read(tmp_path / "rubbish.gz", gzip.compress(text) + b"rubbish")
    assert (found, len(damage)) == (wanted, 1)
    found, damage = read(tmp_path / "text.gz", text)
    assert (found, len(damage)) == ([], 1)


@pytest.mark.slow
@pytest.mark.parametrize("ends", [b"\nlast", b""])
def test_of_a_line_longer_than_any_only_the_beginning_comes(tmp_path: Path, ends: bytes) -> None:
    long = b"x" * (3 * MAX_LINE)
    for data in (b"first\n" + long + ends, gzip.compress(b"first\n" + long + ends)):
        found, damage = read(tmp_path / "long", data)
        assert [len(line) > MAX_LINE for line in found] == [False, True] + [False] * bool(ends)
        assert max(map(len, found)) < 2 * MAX_LINE
        assert (found[-1] == b"last") is bool(ends)
        assert damage == []


WRITER = """
import signal, sys, time
from server.cli import files
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
with files.writing(sys.argv[1]) as file:
    file.write(b"half a line")
    file.flush()
    print("writing", flush=True)
    time.sleep(600)
"""


@contextmanager
def writer(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that is in the middle of writing the file."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "writing\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["events.ndjson", "events.ndjson.gz"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_writer_that_is_told_to_end_leaves_nothing(tmp_path: Path, name: str, signum: int) -> None:
    with writer(tmp_path / name) as process:
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(signum)
        assert process.wait(PROCESS_PATIENCE) == -signum
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_goes_with_the_next_and_a_live_one_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    others = [tmp_path / name for name in (".events.ndjson.more.7.part", ".other.ndjson.7.part", "events.ndjson.part")]
    for other in others:
        other.write_bytes(b"of somebody else")
    with writer(path) as process:
        process.kill()
        process.wait(PROCESS_PATIENCE)
    [left] = set(tmp_path.iterdir()) - set(others)
    with writer(path) as alive:
        assert not left.exists()
        [kept] = set(tmp_path.iterdir()) - set(others)
        with files.writing(str(path)) as file:
            file.write(b"whole\n")
        assert path.read_bytes() == b"whole\n"
        assert kept.exists()
        alive.send_signal(signal.SIGTERM)
        assert alive.wait(PROCESS_PATIENCE) == -signal.SIGTERM
    assert set(tmp_path.iterdir()) == {path, *others}


OLD_RULES: list[dict[str, Any]] = [
    {"input_tokens": 3, "cached_tokens": 20_000},
    {"input_tokens": 2, "cached_tokens": 2**53 - 1, "cost_usd": ABSENT},
    {"input_tokens": 3, "cached_tokens": 20_000, "provider": "acme", "tags": {f"t{n}": "" for n in range(64)}},
    {"input_tokens": 3, "cached_tokens": 20_000},
    {"input_tokens": ABSENT, "cached_tokens": 7},
]
"""Events that lenient handling once counted with the input tokens that they say."""


@pytest.mark.parametrize("payload", ["json", "protobuf"])
@pytest.mark.parametrize("as_counted", [True, False])
def test_the_input_tokens_that_were_counted_come_back(
    tmp_path: Path, payload: codec.PayloadFormat, as_counted: bool
) -> None:
    """Whether an event was taken before cached tokens were added to the input tokens or since."""
    sent = [identified(n, **changes) for n, changes in enumerate(OLD_RULES) if as_counted or n != 1]
    if payload == "protobuf":
        sent[-2]["parent_span_id"] = "\x01" * 45_000  # too long for a line of JSON, which has six bytes for each
    records = [to_json_line(event) if payload == "json" else to_proto(event).SerializeToString() for event in sent]
    columns = codec.decode(payload, records, "lenient", NOON, as_counted=as_counted).columns
    assert len(columns) == len(sent)
    data = tmp_path / "source"
    log = Log(data)
    [part] = build_blocks(Source("default", "default", "key", NOON, payload, "lenient"), columns, 1).values()
    log.append([Append(TopicPartition(EVENTS, 0), [(None, message.encode([part]))])], NOON)
    catch_up(data)
    counted = columns.rows["input"].tolist()
    assert sum(counted) == (3 * 3 + 2 + 0 if as_counted else 3 * 20_003 + 7)
    assert list(differences(data)) == []
    lines = export(data)
    assert [json.loads(line)["input_tokens"] for line in lines] == counted
    assert sum("raw" in json.loads(line)["_spendstream"] for line in lines) == (2 if payload == "protobuf" else 1)
    load(tmp_path / "copy", lines)
    assert tables(tmp_path / "copy") == tables(data)
    assert list(differences(tmp_path / "copy")) == []
    again = [json.loads(line) for line in export(tmp_path / "copy")]
    assert [line["input_tokens"] for line in again] == counted
    load(data, lines)  # all of them are duplicates, and none is a conflict
    months = [row for name, row in tables(data).items() if '"month"' in name and '"org"' in name]
    assert [row[1:] for row in months] == [[len(sent), 0]]
