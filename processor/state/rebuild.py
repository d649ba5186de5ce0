"""Rebuild a partition's rows and ids from its events, while no other process writes to it.

The new rows, the tombstones of rows that no longer exist and the missing claims are one append, all or nothing. So
after a kill at any point a start finds the old rows or the new ones, and the next rebuild begins anew. The old records
are deleted only after that append. Before it the id index is deleted, which the next start makes from the claims, and
the committed offset is set back to where neither the old nor the new rows have a gap behind it.

The events are applied up to the first one that cannot be applied: the worker goes on there, and writes its dead letter.
What cannot be recovered is reported; if the old rows contain it, nothing is written unless that is allowed.

`Recovery` also computes rows anew, at the start of a worker, and shares nothing with this on purpose. It trusts the ids
that were just read back and the sealed checkpoint, so it needs no second copy of the ids; it writes in steps, as all
rows do not fit a broker's transaction; and it refuses to start where anything is missing. Here only the events are
trusted, every record may be damaged, the ids are computed a second time in files, and what is lost is weighed against
what the old rows have. One function for both would ask at each step which of the two it is.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from msgspec import Struct, field

from processor.core.tables import dedupe, history, row_block, table_rows
from processor.core.tables.apply import Tables
from processor.core.tables.dedupe import Claimed
from processor.core.tables.history import Loss, OffsetRange
from processor.core.tables.horizon import Horizon
from processor.log import losses
from processor.log.address import LogAddress
from processor.log.dead_letters import dead_offsets
from processor.log.embedded.log import Log
from processor.log.errors import HistoryMismatch
from processor.log.losses import Lost
from processor.log.port import LogReader
from processor.log.records import Append, TopicPartition
from processor.log.topics import CHECKPOINTS, CLAIMS, DEAD_LETTERS, EVENTS, GROUP, ROWS
from processor.state.recompute import FORGET, NotApplied, Recomputation, UnreadableRecord, arrays_of
from processor.state.recovery import rows_of

CLAIMS_RECORD: Final = 20_000
"""Ids in one record of the claims log, about; 24 bytes each."""

SCRATCH: Final = "rebuild-"
"""The names of the temporary directories of ids begin with this."""

DELETE_STEP: Final = 20_000
"""Old records deleted in one transaction."""


class RebuildRefused(Exception):
    """Nothing of the partition was written; the message says why, and what to do."""


class Target(Protocol):
    """The writer of a rebuild, the only one of the partition meanwhile. Its methods block."""

    packs: bool
    """Whether rows are appended in blocks."""
    at: int
    """The time of what is appended, microseconds since the epoch."""

    def append(self, number: int, appends: Sequence[Append]) -> list[int]:
        """Append all of it or nothing; durable on return."""
        ...

    def delete(self, tp: TopicPartition, before: int) -> None:
        """Delete the records before an offset, where compaction does not do it by itself."""
        ...

    def drop_damaged(self, tp: TopicPartition, offset: int) -> None:
        """Delete a record that cannot be read, where that can be done."""
        ...

    def commit(self, number: int, offset: int) -> None:
        """Commit the offset of the event message that the worker goes on with."""
        ...


class Rebuilt(Struct):
    """The outcome for one partition."""

    partition: int
    offset: int = table_rows.NEVER
    """The last message that the rows contain; the worker goes on from there."""
    messages: int = 0
    """Messages that were applied again."""
    rows: int = 0
    removed: int = 0
    """Rows that existed before and no longer do."""
    claims: int = 0
    """Ids that were missing in the claims log."""
    lost: list[str] = field(default_factory=list)
    """What could not be recovered, a sentence each."""


class _Unread(NotApplied):
    """A message cannot be read, and the tables made so far are useless."""

    def __init__(self, offset: int, text: str) -> None:
        Exception.__init__(self, text)
        self.offset = offset


class Rebuild:
    """One partition. `progress(done, total)` counts offsets of messages; `scratch` is an empty directory; `writes` is
    called before anything is written."""

    def __init__(
        self,
        address: LogAddress,
        log: LogReader,
        number: int,
        scratch: Path,
        target: Target,
        progress: Callable[[int, int], None],
        writes: Callable[[], object] = lambda: None,
    ) -> None:
        self._index = address.data_dir / "index" / f"{number:04d}"
        self._log = log
        self._number = number
        self._scratch = scratch
        self._target = target
        self._progress = progress
        self._writes = writes
        self._events = TopicPartition(EVENTS, number)
        self._seen: set[tuple[str, int]] = set()
        self._closes = False
        """Whether the rows have no horizon, so that it is made from the events."""

    def run(self, *, allow_loss: bool) -> Rebuilt:
        """Rebuild the partition. Blocks for as long as reading all of its events takes.

        Raises `RebuildRefused` if something would be lost that the rows have now, unless `allow_loss`.
        """
        end = self._log.end(self._events)
        failed: NotApplied | None = None
        attempt = 0
        while True:
            done = Rebuilt(self._number)
            self._seen.clear()
            scratch = self._scratch / str(attempt)
            again = Recomputation(self._log, self._number, scratch, self._note(done))
            try:
                self._run(again, done, end, failed, allow_loss=allow_loss)
            except NotApplied as error:  # the tables made so far are useless: begin anew, and stop before the message
                end, failed = error.offset, error
                attempt += 1
                continue
            finally:
                again.close()
                shutil.rmtree(scratch, ignore_errors=True)
            return done

    def _note(self, done: Rebuilt) -> Callable[[UnreadableRecord], None]:
        def note(found: UnreadableRecord) -> None:
            if (found.topic, found.offset) not in self._seen:
                self._seen.add((found.topic, found.offset))
                if found.topic == DEAD_LETTERS:  # all else comes back from the events, or is reported as a gap
                    done.lost.append(str(found))

        return note

    def _run(
        self, again: Recomputation, done: Rebuilt, end: int, failed: NotApplied | None, *, allow_loss: bool
    ) -> None:
        again.read_lost()
        again.read_checkpoint()
        old_keys, had, horizon = self._old_rows(again)
        if horizon is not None:  # the events do not determine it
            again.tables.close_by(horizon)
        risks: list[str] = []
        """What the rows contain now and would lose."""
        first = self._log.first(self._events)
        start = again.base + 1
        gone = _gone(again, start, first)
        for each in gone:
            text = f"messages {each.start} to {each.end - 1} are gone, and no checkpoint stands for them"
            (risks if had >= each.start else done.lost).append(text)
        again.void += gone
        if first > start:
            again.pass_over(first - 1)
        sealed = self._sealed(again, is_passed=first > start)
        start = max(start, first)
        again.read_claims()
        unknown = max(0, again.unclaimed())
        if unknown:
            text = (
                f"the claims log lacks {unknown} of the {again.counted} ids up to message {again.base}, whose events "
                "are deleted: those events count again where they are sent again"
            )
            (risks if had > again.base else done.lost).append(text)
        self._closes = horizon is None
        if self._closes:  # before the first event is applied: else windows of the past would stay open for ever
            newest = again.newest_arrival(start, end, self._dead(again))
            again.tables.close_by(Horizon.of_events(again.tables.horizon, newest, self._target.at))
        missing = self._replay(again, done, start, end, had, risks, gone)
        if failed is not None:
            self._leave(again, done, failed.offset, str(failed), had, risks)
        if had >= self._log.end(self._events):
            risks.append(f"messages {self._log.end(self._events)} to {had}, which the rows contain, are gone")
        if risks and not allow_loss:
            raise RebuildRefused(
                f"partition {self._number} is left as it is, for these rows cannot be made again: {'; '.join(risks)}. "
                "With --allow-loss it is rebuilt without them"
            )
        done.lost += risks
        self._report_claims(again, done)
        reports = [self._lost(history.EVENTS, each) for each in gone]
        if unknown:
            reports.append(self._lost(history.CLAIMS, OffsetRange(0, max(1, again.claims_from or 0)), unknown))
        self._write(again, done, old_keys, missing, sealed, reports)

    def _sealed(self, again: Recomputation, *, is_passed: bool) -> list[tuple[bytes | None, bytes | None]]:
        """Return what has to be written to the checkpoint: its progress where events were passed over, and instead of
        one that is damaged only that."""
        progress = (again.tables.progress.key, table_rows.encode_value(again.tables.progress))
        if again.checkpoint.is_sound:
            return [progress] if is_passed else []
        kept = {progress[0], again.tables.horizon.key, table_rows.encode_key(self._number, "retained")}
        return [*((key, None) for key in sorted(again.checkpoint.keys - kept)), progress]

    def _old_rows(self, again: Recomputation) -> tuple[set[bytes], int, Horizon | None]:
        """Return the keys of all present rows, the offset up to which they contain the events, and their horizon."""
        keys: set[bytes] = set()
        had = table_rows.NEVER
        horizon_key, horizon = table_rows.encode_key(self._number, "horizon"), None
        for record in again.scan(ROWS):
            try:
                found = row_block.expand(self._number, record.key or b"", record.value)
            except ValueError:
                continue
            for key, value in found:
                if value is None:
                    keys.discard(key)
                else:
                    keys.add(key)
                if (
                    key != horizon_key
                ):  # each row has the offset of the last message in it, also where other rows are gone
                    had = max(had, _offset_of(value))
                if key == horizon_key and value is not None:
                    with suppress(ValueError):
                        horizon = Horizon(key, table_rows.decode_value(value))
        return keys, had, horizon

    def _replay(
        self,
        again: Recomputation,
        done: Rebuilt,
        start: int,
        end: int,
        had: int,
        risks: list[str],
        gone: list[OffsetRange],
    ) -> list[Claimed]:
        """Apply the events and return the claims that are not in the log. Adds ranges of missing events to `gone`."""
        dead = self._dead(again)
        again.tables.progress.letters = len(dead)
        missing: list[Claimed] = []
        expected = start
        for offset, found in again.messages(start, end):
            for gap in _gone(again, expected, offset):
                (risks if had >= gap.start else done.lost).append(f"messages {gap.start} to {gap.end - 1} are gone")
                gone.append(gap)
                again.void.append(gap)
            expected = offset + 1
            if offset in dead or found is None:
                again.tables.skip(offset)
                continue
            if isinstance(found, UnreadableRecord):
                if self._closes and again.tables.horizon.windows > again.tables.progress.watermark:
                    raise _Unread(offset, str(found))  # the horizon was made from an event behind this one
                self._leave(again, done, offset, str(found), had, risks)
                break
            again.apply(offset, found)
            done.messages += 1
            if done.messages % FORGET == 0:
                missing += _not_in(again, again.drain_claims())
            self._progress(offset + 1 - start, end - start)
        return missing + _not_in(again, again.drain_claims())

    def _dead(self, again: Recomputation) -> set[int]:
        return dead_offsets(self._log, self._number, again.damage()) if again.has(DEAD_LETTERS) else set()

    @staticmethod
    def _leave(again: Recomputation, done: Rebuilt, offset: int, why: str, had: int, risks: list[str]) -> None:
        """Leave a message to the worker. The rows contain it only if ids were claimed with it: all that count are."""
        if offset <= had and any(claimed.offset == offset for _, claimed in again.claims()):
            risks.append(why)
        else:
            done.lost.append(f"{why}; the worker goes on with it")

    def _report_claims(self, again: Recomputation, done: Rebuilt) -> None:
        """Report what is wrong with the claims and cannot be repaired."""
        wrong = 0
        for _, claimed in again.claims():
            if again.base < claimed.offset <= again.tables.progress.offset:
                keys, _ = arrays_of(claimed)
                wrong += int((again.ids.find(keys)[0] != claimed.offset).sum())
        if wrong:
            done.lost.append(
                f"{wrong} ids are claimed by messages that do not count them, and stay so: their events, sent again, "
                "count as duplicates"
            )

    # --- writing ----------------------------------------------------------------------------------------------------

    def _write(
        self,
        again: Recomputation,
        done: Rebuilt,
        old_keys: set[bytes],
        missing: list[Claimed],
        sealed: list[tuple[bytes | None, bytes | None]],
        reports: list[Lost],
    ) -> None:
        number = self._number
        done.offset = again.tables.progress.offset
        self._writes()
        forget_index(self._index)
        if done.offset == table_rows.NEVER and not old_keys:
            return  # an empty partition
        before = self._log.committed(GROUP, self._events) or 0
        if done.offset + 1 < before:
            self._target.commit(number, done.offset + 1)
        new_keys = set(_keys(again.tables))
        again.sign()
        again.tables.touch_all()
        changes = again.tables.drain_changes(packs=self._target.packs)
        assert changes is not None
        removed: list[tuple[bytes | None, bytes | None]] = [(key, None) for key in sorted(old_keys - new_keys)]
        rows = TopicPartition(ROWS, number)
        appends = [Append(rows, [*removed, *changes.records])]
        if missing:
            appends.append(Append(TopicPartition(CLAIMS, number), [(None, each) for each in _records(missing)]))
        if reports:
            appends.append(Append(losses.HOME, [each.encode() for each in reports]))
        if sealed:
            appends.append(Append(TopicPartition(CHECKPOINTS, number), sealed))
        firsts = self._target.append(number, appends)
        done.rows, done.removed = len(new_keys) - 2, len(removed)
        done.claims = sum(len(each.digests) // 8 for each in missing)
        self._target.delete(rows, firsts[0])
        if not again.checkpoint.is_sound:
            self._target.delete(TopicPartition(CHECKPOINTS, number), firsts[-1])
        for topic, offset in sorted(self._seen):
            if topic in {CLAIMS, DEAD_LETTERS}:
                self._target.drop_damaged(TopicPartition(topic, number), offset)
        self._target.commit(number, done.offset + 1)

    def _lost(self, topic: str, gone: OffsetRange, ids: int = 0) -> Lost:
        return Lost(
            topic=topic,
            partition=self._number,
            start=gone.start,
            end=gone.end,
            counted=topic == history.CLAIMS,
            ids=ids,
            reason="the tables were rebuilt without them",
            at=self._target.at,
        )


class EmbeddedTarget:
    """A `Target` over the embedded log of a server that is stopped; `at`: see `Target.at`."""

    packs = True

    def __init__(self, log: Log, at: int) -> None:
        self._log = log
        self.at = at

    def append(self, number: int, appends: Sequence[Append]) -> list[int]:
        """See `Target.append`."""
        return self._log.append(appends, self.at)

    def delete(self, tp: TopicPartition, before: int) -> None:
        """See `Target.delete`."""
        position: int | None = 0
        while position is not None:
            position, _ = self._log.compact(tp, position, before, DELETE_STEP, np.empty(0, np.int64))

    def drop_damaged(self, tp: TopicPartition, offset: int) -> None:
        """See `Target.drop_damaged`."""
        self._log.drop_damaged(tp, offset)

    def commit(self, number: int, offset: int) -> None:
        """See `Target.commit`."""
        self._log.commit(GROUP, [(TopicPartition(EVENTS, number), offset)])


def repair(address: LogAddress, number: int, at: int) -> Rebuilt:
    """Rebuild a partition of the embedded log in which a start has found damaged records. Blocks.

    Raises `HistoryMismatch`, with what to do, where the rows contain something that the events do not.
    """
    log = address.open()
    assert isinstance(log, Log)
    try:
        with tempfile.TemporaryDirectory(dir=address.data_dir, prefix=SCRATCH) as scratch:
            made = Rebuild(address, log, number, Path(scratch), EmbeddedTarget(log, at), lambda done, total: None)
            return made.run(allow_loss=False)
    except RebuildRefused as error:
        raise HistoryMismatch(f"{error} (`spendstream rebuild --allow-loss`)") from None
    finally:
        log.close()


def remove_scratch(data_dir: Path) -> None:
    """Remove what killed rebuilds have left. Only for the holder of the lock on the data directory."""
    for left in data_dir.glob(f"{SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)


def forget_index(directory: Path) -> None:
    """Delete an id index: whichever process opens it next makes it anew from the claims."""
    (directory / "checkpoint.json").unlink(missing_ok=True)  # first: without it nothing else is believed
    shutil.rmtree(directory, ignore_errors=True)


def _keys(found: Tables) -> Iterator[bytes]:
    """Yield the keys of all rows, those of progress and horizon among them."""
    yield from (row.key for row in rows_of(found))
    yield found.progress.key
    yield found.horizon.key


def _gone(again: Recomputation, start: int, end: int) -> list[OffsetRange]:
    """Return ranges of messages that are gone and whose loss is not reported yet.

    These are the messages from `start` to before `end`, less those reported as in no table, and all from `start` on
    that were reported as gone from the log but still in the tables.
    """
    known = [each for each in again.losses() if each.topic == history.EVENTS]
    missing = [Loss(start, end, counted=False, reason="")] if start < end else []
    missing += [each._replace(start=max(each.start, start)) for each in known if each.counted and each.end > start]
    found = history.unrecorded(missing, [*(each for each in known if not each.counted), *_uncounted(again.void)])
    return [OffsetRange(each.start, each.end) for each in found]


def _uncounted(void: list[OffsetRange]) -> list[Loss]:
    return [Loss(each.start, each.end, counted=False, reason="") for each in void]


def _not_in(again: Recomputation, claimed: list[Claimed]) -> list[Claimed]:
    """Return what of these claims is not in the claims log."""
    missing = []
    for each in claimed:
        keys, digests = arrays_of(each)
        held = again.recorded.find(keys)[0]
        unknown = (held < 0) | again.is_void(held)
        if unknown.any():
            missing.append(Claimed(each.offset, keys[unknown].tobytes(), digests[unknown].tobytes()))
    return missing


def _records(missing: list[Claimed]) -> Iterator[bytes]:
    """Yield claims as the values of records of the claims log."""
    waiting: list[Claimed] = []
    size = 0
    for each in missing:
        waiting.append(each)
        size += len(each.digests) // 8
        if size >= CLAIMS_RECORD:
            yield dedupe.encode_claims(waiting)
            waiting, size = [], 0
    if waiting:
        yield dedupe.encode_claims(waiting)


def _offset_of(value: bytes | None) -> int:
    """Return the offset of the last message that a row contains, its first number; `NEVER` if it cannot be read."""
    try:
        return table_rows.NEVER if value is None else table_rows.decode_value(value)[0]
    except (ValueError, IndexError):
        return table_rows.NEVER
