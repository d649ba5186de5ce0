"""Recompute a partition's tables from its events and compare them with the changelog, row by row.

Works beside a running system: the tables are taken as of the end of one flush, and the events up to the offset that
this flush contained. Where retention has deleted events, the sealed checkpoint stands for them. It holds one
partition's rows in memory, twice; the ids are in files.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from processor.core.events import originals
from processor.core.events.message import Message
from processor.core.tables import row_block, table_rows
from processor.core.tables.apply import Tables
from processor.core.tables.dedupe import Claimed
from processor.core.tables.history import Loss, unrecorded
from processor.core.tables.horizon import Horizon
from processor.core.tables.table_rows import Progress, Row
from processor.ids import index_checkpoint
from processor.ids.index import IdIndex
from processor.log.dead_letters import dead_offsets
from processor.log.errors import DamagedRecord, LogError
from processor.log.port import LogReader
from processor.log.records import TopicPartition
from processor.log.sound import scan_sound
from processor.log.topics import CLAIMS, DEAD_LETTERS, EVENTS, GROUP, PARTITIONED, ROWS
from processor.state.loader import open_index
from processor.state.recompute import FORGET, NotApplied, Recomputation, UnreadableRecord, arrays_of
from processor.state.stored_events import StoredEvents

ATTEMPTS: Final = 3
"""How often to begin again when retention deletes what is being read."""

KEPT: Final = 1000
"""Problems of a partition that are kept with their texts; all are counted."""

Kind = Literal[
    "topic_missing",
    "damaged_record",
    "original_bytes",
    "events_missing",
    "rows_missing",
    "rows_incomplete",
    "claims_missing",
    "claims_wrong",
    "claims_without_events",
    "claims_without_rows",
    "index",
    "event_store",
]
"""Kinds of problems besides differing rows."""

PATIENCE: Final = 3.0
"""Seconds to wait for the rest of a flush of which only a part is in the changelog."""

COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "sums": (
        "offset",
        "requests",
        "errors",
        "input_tokens",
        "output_tokens",
        "cached_tokens",
        "cost_picodollars",
        "unpriced",
        "first_seen",
        "last_seen",
    ),
    "window": ("offset", "unique", "duplicates", "conflicts"),
    "progress": ("offset", "watermark"),
    "horizon": ("windows", "leases", "earlier"),
}
"""The names of the numbers in a row, by its kind."""


class VerifyError(Exception):
    """The tables cannot be recomputed; the text says why."""


class Difference(NamedTuple):
    """One row that differs from the events; None: there is no such row."""

    partition: int
    key: str
    """The row's key in the changelog, JSON."""
    table: list[int] | None
    log: list[int] | None

    @property
    def parts(self) -> list[Any]:
        """The parts of the row's key: kind, then its dimensions; empty for an unknown key."""
        try:
            _, kind, parts = table_rows.decode_key(self.key.encode())
        except ValueError:
            return []
        return [kind, *parts]

    def columns(self) -> dict[str, tuple[int | None, int | None]]:
        """Return what differs: name -> (in the table, by the log)."""
        kind = self.parts[0] if self.parts else None
        if kind == "latency":
            return _histogram_columns(self.table, self.log)
        names = COLUMNS[kind] if kind in COLUMNS else COLUMNS["sums"]
        pairs = [(_at(self.table, position), _at(self.log, position)) for position in range(len(names))]
        return {name: pair for name, pair in zip(names, pairs, strict=True) if pair[0] != pair[1]}


def _histogram_columns(table: list[int] | None, log: list[int] | None) -> dict[str, tuple[int | None, int | None]]:
    ours, theirs = ({"offset": row[0], **_buckets(row)} if row else {} for row in (table, log))
    return {
        name: (ours.get(name), theirs.get(name)) for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)
    }


def _buckets(row: list[int]) -> dict[str, int]:
    return {f"bucket_{bucket}": count for bucket, count in zip(row[1::2], row[2::2], strict=False)}


def _at(numbers: list[int] | None, position: int) -> int | None:
    return numbers[position] if numbers is not None and position < len(numbers) else None


class Problem(NamedTuple):
    """A problem of a partition's state besides differing rows."""

    partition: int
    kind: Kind
    text: str
    topic: str | None = None
    """The topic's name, on Kafka the one that it has on the cluster."""
    offset: int | None = None
    """The offset of the record, if the problem is about one."""


class Verification:
    """The verification of one partition; `progress(done, total)` counts offsets of messages.

    `scratch` is an empty directory for the ids; `index` the directory of the id index, if it is on this machine, and
    `store` that of the event store. `run` blocks for as long as reading all events takes.
    """

    def __init__(
        self,
        log: LogReader,
        number: int,
        scratch: Path,
        progress: Callable[[int, int], None],
        index: Path | None = None,
        store: Path | None = None,
    ) -> None:
        self._log = log
        self._number = number
        self._scratch = scratch
        self._progress = progress
        self._index = index
        self._store = store
        self._stored: StoredEvents | None = None
        self.messages = 0
        """Messages that were applied again."""
        self.offset = table_rows.NEVER
        """The last offset of the events that the compared tables contain."""
        self.settled = True
        """False if the changelog ends, and stays, in the middle of a flush: some rows may be ahead of others."""
        self.problems: list[Problem] = []
        """The first `KEPT` problems."""
        self.problem_count = 0
        self._unusable: set[tuple[str, int]] = set()
        """Topic and offset of the damaged records that were reported."""
        self._rows_end = 0
        """Up to where the changelog has been read."""
        self.notices: list[str] = []
        """What is right but worth knowing, a sentence each."""

    def run(self) -> Iterator[Difference]:
        """Yield all differences, unordered; `problems` and `notices` are complete after the last one.

        Raises `VerifyError`.
        """
        tp = TopicPartition(EVENTS, self._number)
        for attempt in range(ATTEMPTS):
            self.problems, self.problem_count, self.notices = [], 0, []
            self._unusable.clear()
            self.offset = table_rows.NEVER
            again = Recomputation(self._log, self._number, self._scratch / str(attempt), self._note_unusable)
            try:
                if not self._has_topics(again):
                    return
                again.read_lost()
                self.notices = [each.text for each in again.lost]
                start = self._begin(again)
                kept = self._kept(again)
                key = table_rows.encode_key(self._number, "horizon")
                horizon, numbers = self._horizon(key, kept), (_numbers(kept.pop(key, None)) or [])[:3]
                again.tables.close_by(horizon)
                again.read_claims()
                self._check_progress(kept, again)
                self._begin_stored(again, start)
                self._recompute(again, start)
                if self._log.first(tp) > start:
                    continue  # retention has deleted events meanwhile
                self._check_stored()
                self._check_claims(again)
                self._check_index(again)
                said, largest = (horizon.windows, horizon.leases, horizon.earlier), again.tables.progress.watermark
                if max(said) > largest:
                    yield Difference(self._number, key.decode(), numbers, [min(each, largest) for each in said])
                yield from self._differences(kept, again.tables, horizon)
                return
            finally:
                again.close()
        raise VerifyError(f"retention keeps deleting events of partition {self._number} while they are read; try again")

    def _has_topics(self, again: Recomputation) -> bool:
        """Note the topics that are missing; return whether there are those without which nothing can be compared."""
        for topic in PARTITIONED:
            if not again.has(topic):
                text = f"there is no partition {self._number} of the topic {self._log.name_of(topic)}"
                self._note("topic_missing", text, topic)
        return again.has(EVENTS) and again.has(ROWS)

    def _begin(self, again: Recomputation) -> int:
        """Read the checkpoint, and return the first event that it does not stand for. Raises `VerifyError`."""
        first = self._log.first(TopicPartition(EVENTS, self._number))
        again.read_checkpoint()
        start = again.base + 1
        if first > start and not self._unrecorded(again, start, first):
            again.pass_over(first - 1)
            start = first
        if first > start:
            raise VerifyError(
                f"the events of partition {self._number} before {first} are gone, and no checkpoint stands for "
                f"those from {start} on: the tables cannot be recomputed"
            )
        return start

    @staticmethod
    def _unrecorded(again: Recomputation, start: int, end: int) -> list[Loss]:
        """Return the parts of this range that are not reported as gone and in no table."""
        gone = Loss(start, end, counted=False, reason="")
        return unrecorded([gone], [each for each in again.losses() if not each.counted])

    def _note_gap(self, again: Recomputation, start: int, end: int) -> None:
        for gap in self._unrecorded(again, start, end):
            self._note("events_missing", f"messages {gap.start} to {gap.end - 1} are not there", EVENTS)

    def _note(self, kind: Kind, text: str, topic: str | None = None, offset: int | None = None) -> None:
        self.problem_count += 1
        if len(self.problems) < KEPT:
            name = None if topic is None else self._log.name_of(topic)
            self.problems.append(Problem(self._number, kind, text, name, offset))

    def _record(self, topic: str, offset: int) -> str:
        return f"record {self._log.name_of(topic)}:{self._number}:{offset}"

    def _note_unusable(self, found: UnreadableRecord) -> None:
        if (found.topic, found.offset) not in self._unusable:  # claims are read several times
            self._unusable.add((found.topic, found.offset))
            self._note("damaged_record", str(found), found.topic, found.offset)

    # --- rows -------------------------------------------------------------------------------------------------------

    def _kept(self, again: Recomputation) -> dict[bytes, bytes]:
        """Return the tables as the changelog has them at the end of its newest flush.

        Reading to the end finds the newest record of every row, whatever compaction removes meanwhile. The progress is
        the last record of a flush, so it shows that the flush is complete.
        """
        progress = table_rows.encode_key(self._number, "progress")
        rows: dict[bytes, bytes] = {}
        position = 0
        whole = True
        deadline = time.monotonic() + PATIENCE
        while True:
            before = position
            for record in again.scan(ROWS, position):
                position = record.offset + 1
                try:
                    found = row_block.expand(self._number, record.key or b"", record.value)
                except ValueError as error:
                    self._note_unusable(again.unreadable(ROWS, record.offset, error))
                    continue
                for key, value in found:
                    if value is None:
                        rows.pop(key, None)
                    else:
                        rows[key] = value
                    whole = key == progress
            if position > before:
                deadline = time.monotonic() + PATIENCE
            elif whole or time.monotonic() > deadline:
                break
            else:
                time.sleep(0.02)
        self.settled, self._rows_end = whole, position
        if progress in rows:
            try:
                self.offset = table_rows.progress_of(progress, _numbers(rows[progress]) or []).offset
            except ValueError as error:
                self._note("rows_incomplete", f"the progress of partition {self._number} says nothing: {error}", ROWS)
        return rows

    def _horizon(self, key: bytes, kept: dict[bytes, bytes]) -> Horizon:
        """Return the horizon of the changelog. The events do not determine it, but limit it to the largest arrival.

        A window that is open at the end was open at every message, so all of its events are in its row.
        """
        value, progress = kept.get(key), kept.get(table_rows.encode_key(self._number, "progress"))
        try:
            if value is not None:
                return Horizon(key, table_rows.decode_value(value))
        except ValueError as error:
            raise VerifyError(f"the horizon of partition {self._number} cannot be read: {error}") from None
        return Horizon(key) if progress is None else Horizon.of_earlier(key, table_rows.decode_value(progress)[1])

    def _check_progress(self, rows: dict[bytes, bytes], again: Recomputation) -> None:
        """Note a problem if there is no progress, but other state shows that messages were applied."""
        if self.offset != table_rows.NEVER:
            return
        committed = self._log.committed(GROUP, TopicPartition(EVENTS, self._number)) or 0
        reached = max(again.last_claim, again.base, committed - 1)
        if (rows or reached != table_rows.NEVER) and self._progress_now(again) == table_rows.NEVER:
            self._note(
                "rows_missing",
                f"the rows of partition {self._number}, or their progress, are not there, though messages up to "
                f"{max(reached, 0)} were applied",
                ROWS,
            )

    # --- events and claims ------------------------------------------------------------------------------------------

    def _recompute(self, again: Recomputation, start: int) -> None:
        """Apply the events from `start` on that the compared tables contain, and look for the ids they claim."""
        log_end = self._log.end(TopicPartition(EVENTS, self._number))
        end = self.offset + 1
        if end > log_end:
            self._note(
                "events_missing",
                f"the tables of partition {self._number} contain messages up to {self.offset}, the events end before "
                f"{log_end}",
                EVENTS,
            )
        dead = dead_offsets(self._log, self._number, again.damage()) if again.has(DEAD_LETTERS) else set()
        for offset in sorted(offset for offset in dead if offset >= log_end):
            self._note("events_missing", f"there is a dead letter of message {offset}, the events end before", EVENTS)
        self.messages = 0
        expected = start
        for offset, found in again.messages(start, min(end, log_end)):
            if offset > expected:
                self._note_gap(again, expected, offset)
            expected = offset + 1
            self._apply(again, offset, found, dead)
            self.messages += 1
            if self.messages % FORGET == 0:
                self._look_for(again, again.drain_claims())
            self._progress(offset + 1 - start, end - start)
        if expected < min(end, log_end):
            self._note_gap(again, expected, min(end, log_end))
        self._look_for(again, again.drain_claims())

    def _apply(
        self, again: Recomputation, offset: int, found: Message | UnreadableRecord | None, dead: set[int]
    ) -> None:
        if found is None:
            again.tables.skip(offset)
            return
        if isinstance(found, UnreadableRecord):
            if offset not in dead:
                self._note_unusable(found)
            elif found.is_damaged:
                self.notices.append(f"{found}; it is a dead letter, and counted nowhere")
            again.tables.skip(offset)
            return
        for what in originals.differences(found):
            self._note(
                "original_bytes", f"record {self._log.name_of(EVENTS)}:{self._number}:{offset}: {what}", EVENTS, offset
            )
        if offset in dead:
            again.tables.skip(offset)
            return
        try:
            again.apply(offset, found)
        except NotApplied as error:
            raise VerifyError(f"partition {self._number}: {error}; it is no dead letter") from error
        if self._stored is not None:
            self._stored.add(offset, found)

    # --- the event store --------------------------------------------------------------------------------------------

    def _begin_stored(self, again: Recomputation, start: int) -> None:
        """Find out which events from `start` on the store has to hold."""
        if self._store is None:
            return
        stored = StoredEvents(self._log, self._number, self._store, again.ids, start, self.offset + 1)
        self._stored = None if stored.is_empty else stored

    def _check_stored(self) -> None:
        """Compare the event store with the events that were applied again."""
        stored = self._stored
        if stored is None:
            return
        for text in stored.differences():
            self._note("event_store", text)
        self.notices.append(f"the event store was compared from message {stored.start} to {stored.end - 1}")

    def _look_for(self, again: Recomputation, claimed: list[Claimed]) -> None:
        """Check that the claims log has these ids, each at the offset of its message."""
        for each in claimed:
            keys, digests = arrays_of(each)
            held, kept = again.recorded.find(keys)
            missing = int((held < 0).sum())
            if missing:
                self._note(
                    "claims_missing",
                    f"message {each.offset}: {missing} of its ids are counted, and not in the claims log",
                    CLAIMS,
                )
            other = (held >= 0) & ((held != each.offset) | (kept != digests))
            if other.any():
                self._note(
                    "claims_wrong",
                    f"message {each.offset}: {int(other.sum())} of its ids are counted with it, and claimed with "
                    f"another one or another content, the first with {int(held[other][0])}",
                    CLAIMS,
                )

    def _check_claims(self, again: Recomputation) -> None:
        """Check that every id of the claims log is counted by the message that claims it."""
        unclaimed = again.unclaimed()
        if unclaimed:
            self._note(
                "claims_missing" if unclaimed > 0 else "claims_without_events",
                f"the checkpoint of partition {self._number} counts {again.counted} events up to {again.base}, the "
                f"claims log has {again.claimed_before} ids for them",
                CLAIMS,
            )
        newest = again.base
        for record, claimed in again.claims():
            newest = max(newest, claimed.offset)
            if not again.base < claimed.offset <= self.offset:
                continue
            keys, _ = arrays_of(claimed)
            wrong = again.ids.find(keys)[0] != claimed.offset
            if wrong.any():
                self._note(
                    "claims_without_events",
                    f"{self._record(CLAIMS, record)} claims {int(wrong.sum())} ids with message "
                    f"{claimed.offset} that it does not count",
                    CLAIMS,
                    record,
                )
        # Claims and progress are written together: what is claimed by now is in the progress by now.
        if newest > self.offset and newest > (applied := self._progress_now(again)):
            self._note(
                "claims_without_rows",
                f"ids are claimed with messages up to {newest}, the tables of partition {self._number} contain those "
                f"up to {applied}",
                CLAIMS,
            )

    def _progress_now(self, again: Recomputation) -> int:
        """Return the newest progress in the changelog, read from where the last read ended."""
        progress = table_rows.encode_key(self._number, "progress")
        found = self.offset
        for record in again.scan(ROWS, self._rows_end):
            if record.key == progress and (numbers := _numbers(record.value)):
                found = max(found, numbers[0])
        return found

    # --- the id index -----------------------------------------------------------------------------------------------

    def _check_index(self, again: Recomputation) -> None:
        """Check that the index has every id that its checkpoint counts, at the offset of its claim.

        It checks a copy, so that it can run beside the worker.
        """
        if self._index is None or not (self._index / index_checkpoint.NAME).exists():
            return  # the next start makes it anew
        copy = self._scratch / "index"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for path in sorted(
            self._index.iterdir(), key=lambda path: path.name != index_checkpoint.NAME
        ):  # the files that it names are copied after it
            with suppress(FileNotFoundError):  # a newer checkpoint does not name it
                shutil.copyfile(path, copy / path.name)
        try:
            index = open_index(copy, self._log, self._number)
        except (OSError, ValueError, LogError) as error:
            self._note("index", f"the id index {self._index} cannot be opened: {error}")
            return
        if index.covered == index_checkpoint.NOTHING:
            self.notices.append(f"the id index {self._index} does not agree with the log; the next start makes it anew")
        try:
            self._compare_index(index, again)
        finally:
            index.close()
            shutil.rmtree(copy)

    def _compare_index(self, index: IdIndex, again: Recomputation) -> None:
        covered = index.checkpointed
        wrong = total = 0
        for record, claimed in again.claims():
            if record < covered:
                keys, _ = arrays_of(claimed)
                total += len(keys)
                wrong += int((index.find(keys)[0] != again.recorded.find(keys)[0]).sum())
        if wrong:
            self._note(
                "index",
                f"the id index {self._index} lacks {wrong} of the {total} ids that it should have, or has them with "
                "another message",
            )
        claims_are_whole = not any(each.kind == "claims_missing" for each in self.problems)
        nothing_is_on_its_way = self._log.end(TopicPartition(EVENTS, self._number)) - 1 == self.offset
        if claims_are_whole and nothing_is_on_its_way:
            surplus = len(index) - len(again.recorded)
            if surplus > 0:
                self._note("index", f"the id index {self._index} has {surplus} ids that were never claimed")

    # --- rows again -------------------------------------------------------------------------------------------------

    def _differences(self, kept: dict[bytes, bytes], again: Tables, horizon: Horizon) -> Iterator[Difference]:
        number = self._number
        for row in rows_of(again, horizon):
            value = kept.pop(row.key, None)
            numbers = _numbers(value)
            if isinstance(row, Progress) and numbers is not None:
                numbers = numbers[: len(row.value())]  # the others are about the log, not about the events
            if value != table_rows.encode_value(row) and numbers != row.value():
                yield Difference(number, row.key.decode(), numbers, row.value())
        for key, value in kept.items():
            if not _is_closed(key, horizon):
                yield Difference(number, key.decode(errors="replace"), _numbers(value), None)


def partitions_of(log: LogReader) -> int:
    """Return how many partitions there must be: the number in the existing topics."""
    topics = log.topics()
    return max(log.partitions, *(topics.get(topic, 0) for topic in PARTITIONED))


def damage_elsewhere(log: LogReader) -> list[Problem]:
    """Return the damaged records of all topics that no `Verification` reads."""
    found: list[Problem] = []

    def note(error: DamagedRecord) -> None:
        found.append(Problem(error.partition, "damaged_record", str(error), error.name, error.offset))

    for topic, count in log.topics().items():
        for number in range(count if topic not in PARTITIONED else 0):
            for _ in scan_sound(log, TopicPartition(topic, number), note):
                pass
    return found


def verify(log: LogReader, number: int, scratch: Path, progress: Callable[[int, int], None]) -> list[Difference]:
    """Return all differences of one partition, see `Verification`."""
    return list(Verification(log, number, scratch, progress).run())


def rows_of(found: Tables, horizon: Horizon) -> Iterator[Row]:
    """Return the rows that must exist: all but closed windows, which may or may not have been removed yet."""
    for _, row in found.users.rows():
        yield row
    for kind in (found.hours, found.latencies):
        yield from (row for _, row in kind.rows())
    for (_, _, window, start), counts in found.windows.items():
        if not horizon.may_lack(window, start):
            yield counts
    if found.progress.offset != table_rows.NEVER:
        yield found.progress


def _is_closed(key: bytes, horizon: Horizon) -> bool:
    try:
        _, kind, parts = table_rows.decode_key(key)
        return kind == "window" and horizon.may_lack(parts[2], parts[3])
    except (ValueError, IndexError, TypeError):
        return False  # an unknown key


def _numbers(value: bytes | None) -> list[int] | None:
    try:
        return None if value is None else table_rows.decode_value(value)
    except ValueError:
        return []  # the row exists, but cannot be read
