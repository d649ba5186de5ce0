"""Compare events, rows, claims and ids of a partition that a worker takes over, and repair what does not fit.

`processor.core.tables.history` decides; here its facts are read and its verdict is carried out. Every step can be
repeated after a crash: a loss is reported once, the log is filled up to a fixed offset, a message that was appended
again has a dead letter that says so, and rows that were written anew count only once the progress follows them.

`rebuild.Rebuild` computes rows from events too, offline; its module says why the two stay apart.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import msgspec
import numpy as np
from msgspec.structs import replace

from processor.core.events import message
from processor.core.events.message import MessageError, UnknownVersion
from processor.core.tables import dedupe, history, table_rows
from processor.core.tables.apply import Tables
from processor.core.tables.dedupe import Claimed
from processor.core.tables.history import (
    Facts,
    Found,
    Loss,
    OffsetRange,
    Verdict,
    digest_of,
    is_padding,
    judge,
    void_ranges,
)
from processor.core.tables.horizon import Horizon
from processor.core.tables.table_rows import NEVER, UNKNOWN
from processor.ids.index import IdIndex
from processor.log import losses
from processor.log.dead_letters import DeadLetter, Retry, dead_offsets
from processor.log.embedded.log import Log
from processor.log.errors import HistoryMismatch
from processor.log.port import LogWriter, Read, polls, scan
from processor.log.records import Append, Record, TopicPartition
from processor.log.topics import CHECKPOINTS, CLAIMS, DEAD_LETTERS, EVENTS, GROUP, ROWS
from processor.structured_log import get_logger

AppendTables = Callable[[list[Append]], list[int]]
"""Append to the rows, claims and dead letters of the partition, as the only writer of its rows and claims; durable on
return. On Kafka it also ends a transaction that an earlier owner left open and whose end the broker has lost: else
nothing behind it could be read. Raises `LogUnavailable`."""

EXIT_REFUSED: Final = 2

MESSAGES: Final = 100
"""Event messages read at a time."""

CHUNK: Final = 1000
"""Offsets checked together, from the end of the events backwards."""

STRETCH: Final = 10_000
"""A start checks that this many messages before the progress exist, each of them."""

PROBES: Final = 100
"""Of the messages before `STRETCH` a start checks this many, evenly spread."""

PADDING: Final = (b"padding", None)

ROWS_STEP: Final = 5000
"""Rows in one append."""

CLAIMS_STEP: Final = 100_000
"""Ids in one record of the claims log, approximately."""

REPORT_EVERY: Final = 5.0
"""Seconds between two progress lines in the program's log while rows are computed anew."""


class Recovery:
    """One comparison of a partition whose rows and claims were just read back. All methods block."""

    def __init__(
        self, log: LogWriter, number: int, found: Tables, index: IdIndex, append: AppendTables, at: int, scratch: Path
    ) -> None:
        """`at` is now, in microseconds since the epoch; `scratch` a directory that may be made and removed."""
        self._log = log
        self._number = number
        self._tables = found
        self._index = index
        self._append = append
        self._at = at
        self._scratch = scratch
        self._events = TopicPartition(EVENTS, number)
        self._lost = losses.of_partition(log, number)
        self._logger = get_logger().bind(partition=number)

    def run(self, *, thorough: bool = False) -> int | None:
        """Compare and repair. Return the next offset to read; None: state was written, read it back and run again.

        Of the embedded log the existence of every message is checked if `thorough`, or if anything is wrong. Raises
        `HistoryMismatch` for what cannot be repaired, `LogUnavailable`.
        """
        self._report_letters()
        facts = self._facts()
        verdict = judge(facts)
        if isinstance(self._log, Log) and (thorough or not verdict.is_fine):
            facts = replace(facts, holes=self._holes(self._log, facts.first, facts.end, thorough=True))
            verdict = judge(facts)
        if verdict.cut is not None and verdict.cut <= facts.progress.offset:
            facts = replace(facts, regrown=self._regrown(min(facts.end, facts.progress.offset + 1)))
            verdict = judge(facts)
        if self._restore_letters(facts, verdict):
            return None
        if verdict.cut is not None:
            claimed = self._report(verdict, facts)
            self._fill(verdict)
            if claimed:
                return None
            healed = replace(
                facts, end=self._log.end(self._events), found="unknown", foreign=None, regrown=None, lost=self._lost
            )
            verdict = judge(facts := healed)
        if verdict.refuse is not None and facts.first > 0 and CHECKPOINTS in self._log.topics():
            verdict = judge(replace(facts, base=self._sealed(self._index).progress.offset))
        if verdict.refuse is not None:
            raise HistoryMismatch(f"partition {self._number}: {verdict.refuse}")
        if self._report(verdict, facts):
            return None
        if verdict.rebuild_rows:
            self._rebuild(verdict, facts)
            return None
        self._close_end(facts)
        return verdict.resume

    # --- facts ------------------------------------------------------------------------------------------------------

    def _facts(self) -> Facts:
        log, progress = self._log, self._tables.progress
        first, end = log.first(self._events), log.end(self._events)
        void = void_ranges(self._lost)
        holes: list[OffsetRange] = []
        found: Found = "unknown"
        if first <= progress.offset < end:
            at = next(self._messages(progress.offset, progress.offset + 1), None)
            if at is None:
                found = "missing"
                holes = self._unrecorded([(progress.offset, progress.offset + 1)])
            elif progress.digest != UNKNOWN and not at.is_damaged:
                found = "same" if digest_of(at.key, at.value) == progress.digest else "other"
        if isinstance(log, Log):
            holes = self._holes(log, first, end)
        tail = self._tail_of_claims()
        rows, events = self._tables.tally
        return Facts(
            first=first,
            end=end,
            committed=log.committed(GROUP, self._events),
            progress=progress,
            found=found,
            rows=rows,
            events=events,
            events_of_hours=self._tables.hours.tally[1],
            claims_first=self._claims_first(),
            reach=max((claimed.offset for claimed in tail), default=NEVER),
            ids=len(self._index),
            foreign=self._foreign(tail, end, void) if progress.offset != NEVER else None,
            holes=holes,
            lost=self._lost,
        )

    def _holes(self, log: Log, first: int, end: int, *, thorough: bool = False) -> list[OffsetRange]:
        """Return the messages of the embedded log that are missing up to the progress and not recorded as lost yet.

        Checks the last `STRETCH` and `PROBES` of the others, or all if one of these is missing.
        """
        end = min(self._tables.progress.offset + 1, end)
        if end <= first:
            return []
        start = max(first, end - STRETCH)
        probes = range(first, start, -(-(start - first) // PROBES) or 1)
        if thorough or any(self._unrecorded(log.missing(self._events, each, each + 1)) for each in probes):
            start = first
        return self._unrecorded(log.missing(self._events, start, end))

    def _unrecorded(self, holes: Sequence[tuple[int, int]]) -> list[OffsetRange]:
        return [OffsetRange(*hole) for hole in holes if history.unrecorded([_hole(OffsetRange(*hole))], self._lost)]

    def _messages(self, start: int, end: int) -> Iterator[Record]:
        """Yield the events between two offsets, damaged ones included: those are dead letters or were not applied."""
        log = self._log
        read: Read = partial(log.read, keep_damaged=True) if isinstance(log, Log) else log.read
        for records in polls(read, self._events, start, end, MESSAGES):
            yield from records

    def _claims_first(self) -> int:
        tp = TopicPartition(CLAIMS, self._number)
        if not isinstance(self._log, Log):
            return self._log.first(tp)
        found = self._log.read(tp, self._tables.progress.claims_from, 1)
        return found[0].offset if found else self._log.end(tp)

    def _tail_of_claims(self) -> list[Claimed]:
        """Return what the last records claim, back to a message that the tables contain; at least one record."""
        tp = TopicPartition(CLAIMS, self._number)
        first, end = self._log.first(tp), self._log.end(tp)
        step = 16
        while True:
            start = max(first, end - step)
            found = [
                each
                for record in scan(self._log, tp, start, end, MESSAGES)
                for each in dedupe.decode_claims(record.value or b"")
            ]
            is_enough = self._tables.progress.offset == NEVER and found
            if start == first or is_enough or any(each.offset <= self._tables.progress.offset for each in found):
                return found
            step *= 4

    def _foreign(self, tail: Sequence[Claimed], end: int, void: Sequence[OffsetRange]) -> int | None:
        """Return `Facts.foreign`. The claims are ahead of the rows only if the rows have lost their end."""
        for claimed in sorted(tail, key=lambda each: each.offset):
            if not self._tables.progress.offset < claimed.offset < end or any(claimed.offset in each for each in void):
                continue
            found = next(self._messages(claimed.offset, claimed.offset + 1), None)
            if found is None or (not found.is_damaged and not self._has(found, claimed)):
                return claimed.offset
        return None

    def _has(self, record: Record, claimed: Claimed) -> bool:
        try:
            keys = self._tables.prepare(message.decode(record.value or b""))
        except UnknownVersion:  # a newer program has claimed them; this one applies nothing from there on
            return True
        except MessageError:
            return False
        there = set(map(tuple, keys.tolist()))
        return there.issuperset(map(tuple, np.frombuffer(claimed.keys, "<u8").reshape(-1, 2).tolist()))

    def _sealed(self, index: IdIndex) -> Tables:
        base = Tables(self._number, self._log.salt, index)
        records = scan(self._log, TopicPartition(CHECKPOINTS, self._number))
        base.restore_all((record.key or b"", record.value, record.offset) for record in records)
        return base

    def _regrown(self, end: int) -> int | None:
        """Return the first offset below `end` that was used before, for another message than it has now; None: none.

        Searches from `end` backwards: a message whose ids are not claimed, or only by later messages, was not applied.
        Ends at the first `CHUNK` in which all messages were applied.
        """
        found: int | None = None
        dead = dead_offsets(self._log, self._number)
        first = self._log.first(self._events)
        while end > first:
            start = max(first, end - CHUNK)
            is_clean, is_proven = True, False
            for record in self._messages(start, end):
                if record.offset in dead or record.is_damaged or is_padding(record.value):
                    continue
                is_applied, claims_own = self._is_applied(record)
                is_proven |= claims_own
                if not is_applied:
                    found = record.offset if is_clean else found
                    is_clean = False
            if is_clean and is_proven:
                break
            end = start
        return found

    def _is_applied(self, record: Record) -> tuple[bool, bool]:
        try:
            keys = self._tables.prepare(message.decode(record.value or b""))
        except MessageError:
            return True, False
        held, _ = self._index.find(keys)
        return bool(((held >= 0) & (held <= record.offset)).all()), bool((held == record.offset).any())

    # --- healing ----------------------------------------------------------------------------------------------------

    def _report(self, verdict: Verdict, facts: Facts) -> bool:
        """Record what is lost; True if ids that were read back are no longer claims."""
        reported = losses.report(self._log, self._number, verdict.losses, self._at)
        for each in reported:
            self._logger.error("events.lost", topic=each.topic, first=each.start, last=each.end - 1, text=each.text)
        self._lost = [*self._lost, *verdict.losses]
        voided = any(loss.topic == history.EVENTS and not loss.counted for loss in verdict.losses)
        if voided and facts.reach > facts.progress.offset:
            self._index.distrust()
            return True
        return False

    def _report_letters(self) -> None:
        """Report dead letters that are gone: nothing else tells of messages that no table contains."""
        tp = TopicPartition(DEAD_LETTERS, self._number)
        gone = [(0, self._log.first(tp))]
        if isinstance(self._log, Log):
            gone = self._log.missing(tp, 0, self._log.end(tp))
        found = [
            Loss(*each, counted=False, reason="deleted", topic="dead-letters") for each in gone if each[0] < each[1]
        ]
        for each in losses.report(self._log, self._number, history.unrecorded(found, self._lost), self._at):
            self._logger.error("letters.lost", first=each.start, last=each.end - 1, text=each.text)

    def _restore_letters(self, facts: Facts, verdict: Verdict) -> bool:
        """Write dead letters again that are gone while their messages still exist. True: state was written.

        That a readable message was not applied is known from its ids, so all ids have to be known. Raises
        `HistoryMismatch` where they are not.
        """
        dead = dead_offsets(self._log, self._number)
        missing = facts.progress.letters - len(dead)
        if facts.progress.letters == UNKNOWN or missing <= 0:
            return False
        knows_ids = not verdict.rebuild_claims and facts.reach >= facts.progress.claimed
        end = min(facts.end, facts.progress.offset + 1, facts.end if verdict.cut is None else verdict.cut)
        found = 0
        while end > facts.first and found < missing:
            start = max(facts.first, end - CHUNK)
            buried = [self._bury_again(record, dead, knows_ids=knows_ids) for record in self._messages(start, end)]
            found += sum(buried)
            end = start
        self._logger.error("letters.restored", missing=missing, found=found)
        if found < missing and not knows_ids and verdict.cut is None:
            raise HistoryMismatch(
                f"partition {self._number}: {missing - found} dead letters and some of the claims are missing: which "
                "messages were not applied is no longer known, and to go on would count events twice. Stop all "
                f"processes and {history.RESTORE}"
            )
        to = TopicPartition(DEAD_LETTERS, self._number)
        unknown = missing - found - self._log.first(to)  # those before `first` have been reported already
        if unknown > 0:
            at = self._log.end(to)
            loss = Loss(at, at + unknown, counted=False, reason="the log lost its end", topic="dead-letters")
            for each in losses.report(self._log, self._number, history.unrecorded([loss], self._lost), self._at):
                self._logger.error("letters.lost", first=each.start, last=each.end - 1, text=each.text)
        progress = replace(facts.progress, dirty=0, letters=len(dead) + found)
        to = TopicPartition(ROWS, self._number)
        self._append([Append(to, [(progress.key, table_rows.encode_value(progress))])])
        return True

    def _bury_again(self, record: Record, dead: Container[int], *, knows_ids: bool) -> bool:
        """Write the letter of a message that has none and was not applied; False: it was applied, or may have been."""
        if record.offset in dead or is_padding(record.value):
            return False
        reason, retried = self._why_dead(record, knows_ids=knows_ids)
        if reason is None:
            return False
        letter = DeadLetter(EVENTS, self._number, record.offset, reason, self._at, record.is_damaged)
        records: list[tuple[bytes | None, bytes | None]] = [(letter.encode(), record.value)]
        if retried is not None:
            records.append((msgspec.json.encode(Retry(letter.place, retried, self._at)), None))
        self._append([Append(TopicPartition(DEAD_LETTERS, self._number), records)])
        return True

    def _why_dead(self, record: Record, *, knows_ids: bool) -> tuple[str | None, int | None]:
        """Return why a message was not applied (None: it was), and the offset at which it was appended again."""
        if record.is_damaged:
            return "its checksum does not match", None
        try:
            keys = self._tables.prepare(message.decode(record.value or b""))
        except UnknownVersion:
            return None, None
        except Exception as error:  # noqa: BLE001 - as the applier does
            return str(error) or repr(error), None
        held, _ = self._index.find(keys)
        if not knows_ids or bool(((held >= 0) & (held <= record.offset)).all()):
            return None, None
        reason = "it was not applied, and the letter that said why is gone"
        later = set(held[(held < 0) | (held > record.offset)].tolist())
        return reason, later.pop() if len(later) == 1 and NEVER not in later else None

    def _fill(self, verdict: Verdict) -> None:
        """Advance the end of the events with padding, and append messages again whose offsets were used before."""
        assert verdict.cut is not None
        assert verdict.fill_to is not None
        while (end := self._log.end(self._events)) < verdict.fill_to:
            count = min(verdict.fill_to - end, CHUNK)
            self._logger.warning("events.filled", start=end, count=count)
            self._log.append([Append(self._events, [PADDING] * count)], self._at)
        dead = dead_offsets(self._log, self._number)
        for record in self._messages(verdict.cut, verdict.fill_to - 1):
            if record.offset not in dead and not record.is_damaged and not is_padding(record.value):
                self._append_again(record)

    def _append_again(self, record: Record) -> None:
        reason = "it stands at an offset that was used before the log lost its end"
        [to] = self._log.append([Append(self._events, [(None, record.value)])], self._at)
        letter = DeadLetter(EVENTS, self._number, record.offset, reason, self._at)
        note = Retry(letter.place, to, self._at)
        records = [(letter.encode(), record.value), (msgspec.json.encode(note), None)]
        self._append([Append(TopicPartition(DEAD_LETTERS, self._number), records)])
        self._logger.warning("message.appended_again", offset=record.offset, to=to)

    def _close_end(self, facts: Facts) -> None:
        """Append padding where the last record of the embedded log is missing.

        Its end does not go back then, so readers that wait for the record before it would wait for ever.
        """
        if not isinstance(self._log, Log) or facts.first == facts.end:
            return
        if next(self._messages(facts.end - 1, facts.end), None) is None:
            self._log.append([Append(self._events, [PADDING])], self._at)

    # --- computing anew ---------------------------------------------------------------------------------------------

    def _rebuild(self, verdict: Verdict, facts: Facts) -> None:
        what = "rows and claims" if verdict.rebuild_claims else "rows"
        self._logger.warning("tables.rebuilding", what=what, until=verdict.target, rows=facts.rows, events=facts.events)
        shutil.rmtree(self._scratch, ignore_errors=True)
        index = IdIndex(self._scratch, self._log.identity) if verdict.rebuild_claims else self._index
        try:
            again = self._sealed(index) if facts.first > 0 else Tables(self._number, self._log.salt, index)
            again.close_by(self._horizon_of(again, verdict))
            written = self._compute(again, verdict)
            again.progress.claims_from = self._tables.progress.claims_from
            before = self._tables.progress
            missing = before.events + before.spans - again.tally[1] - again.progress.spans
            if missing > 0:
                raise HistoryMismatch(
                    f"partition {self._number}: {what} are missing, and the events that are left come to {missing} "
                    f"events less than the tables had. Stop all processes and {history.RESTORE}"
                )
            if verdict.rebuild_claims:
                again.progress.claims_from = facts.claims_first if written is None else written
                self._index.distrust()
            self._write(again)
        finally:
            if index is not self._index:
                index.close()
                shutil.rmtree(self._scratch, ignore_errors=True)
        self._logger.warning("tables.rebuilt", what=what, rows=again.progress.rows, events=again.progress.events)

    def _horizon_of(self, again: Tables, verdict: Verdict) -> Horizon:
        """Return the horizon as it was read back. If there was none, make one from the events that are applied again,
        so that no window of theirs stays open for ever."""
        found = self._tables.horizon
        if found.changelog != NEVER or self._tables.progress.offset != NEVER:
            return found
        return Horizon.of_events(again.horizon, self._newest_arrival(again.progress.offset + 1, verdict), self._at)

    def _newest_arrival(self, start: int, verdict: Verdict) -> int:
        """Return the arrival of the last event from `start` up to the target, in microseconds; 0: there is none."""
        dead = dead_offsets(self._log, self._number)
        end = verdict.target + 1
        while end > start:
            first = max(start, end - MESSAGES)
            for record in reversed(list(self._messages(first, end))):
                if not (record.offset in dead or record.is_damaged or is_padding(record.value)):
                    with suppress(MessageError):  # `_compute` reports it
                        return message.decode(record.value or b"").arrival
            end = first
        return 0

    def _compute(self, again: Tables, verdict: Verdict) -> int | None:
        """Apply the events up to the target. Write the claims on the way if they are rebuilt, and return the offset of
        their first record."""
        dead = dead_offsets(self._log, self._number)
        claims_at: int | None = None
        said = time.monotonic()
        waiting: list[Claimed] = []
        start = again.progress.offset + 1
        last = NEVER
        for record in self._messages(start, verdict.target + 1):
            if record.offset in dead or record.is_damaged or is_padding(record.value):
                again.skip(record.offset)
            elif self._cannot_be_read(record):  # its letter is gone
                self._bury_again(record, dead, knows_ids=False)
                again.skip(record.offset)
            else:
                try:
                    decoded = message.decode(record.value or b"")
                    again.apply(record.offset, decoded, again.prepare(decoded))
                except Exception as error:
                    raise HistoryMismatch(
                        f"partition {self._number}: the tables have to be computed anew, and message {record.offset}, "
                        f"which is no dead letter, cannot be applied: {error!r}. Stop all processes and "
                        f"{history.RESTORE}"
                    ) from error
            again.progress.digest, last = digest_of(record.key, record.value), record.offset
            changes = again.drain_changes()
            if verdict.rebuild_claims and changes is not None:
                waiting += changes.claimed
                if sum(len(each.digests) for each in waiting) >= 8 * CLAIMS_STEP:
                    claims_at = self._claim(waiting, claims_at)
                    waiting = []
            if time.monotonic() - said > REPORT_EVERY:
                said = time.monotonic()
                done = f"{100 * (record.offset - start) // max(1, verdict.target + 1 - start)} %"
                self._logger.info("tables.rebuilding", done=done, rows=again.tally[0])
        again.skip(verdict.target)
        if last != verdict.target:
            again.progress.digest = UNKNOWN
        return self._claim(waiting, claims_at) if waiting else claims_at

    @staticmethod
    def _cannot_be_read(record: Record) -> bool:
        try:
            message.decode(record.value or b"")
        except UnknownVersion:
            return False
        except MessageError:
            return True
        return False

    def _claim(self, waiting: list[Claimed], first: int | None) -> int:
        [at] = self._append([Append(TopicPartition(CLAIMS, self._number), [(None, dedupe.encode_claims(waiting))])])
        return at if first is None else first

    def _write(self, again: Tables) -> None:
        """Write every row, the horizon, tombstones for rows that no longer exist, and last the progress: with it the
        rows count."""
        to = TopicPartition(ROWS, self._number)
        again.drain_changes()  # sets the tally
        keys = set()
        step: list[tuple[bytes, bytes | None]] = []
        for row in rows_of(again):
            keys.add(row.key)
            step.append((row.key, table_rows.encode_value(row)))
            if len(step) >= ROWS_STEP:
                self._append([Append(to, step)])
                step = []
        step.append((again.horizon.key, again.horizon.encode()))
        step += [(row.key, None) for row in rows_of(self._tables) if row.key not in keys]
        for start in range(0, len(step), ROWS_STEP):
            self._append([Append(to, step[start : start + ROWS_STEP])])
        progress = replace(again.progress, dirty=0)
        progress.rows, progress.events = again.tally
        self._append([Append(to, [(progress.key, table_rows.encode_value(progress))])])


def refuse(error: HistoryMismatch) -> NoReturn:
    """Print the error and end the process with exit code `EXIT_REFUSED`."""
    get_logger().critical("history.mismatch", error=str(error))
    print(f"spendstream worker: {error}", file=sys.stderr, flush=True)  # noqa: T201 - for the person who started it
    os._exit(EXIT_REFUSED)


def rows_of(found: Tables) -> Iterator[table_rows.Row]:
    """Yield all rows but the progress and the horizon."""
    for columns in (found.users, found.hours, found.latencies):
        yield from (row for _, row in columns.rows())
    yield from found.windows.values()


def _hole(hole: OffsetRange) -> Loss:
    return Loss(hole.start, hole.end, counted=True, reason="")
