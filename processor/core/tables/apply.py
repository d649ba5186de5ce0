"""Apply messages to their partition's tables: the one place where numbers that are billed change.

`prepare` may fail and changes nothing; `apply` does not fail. A row takes a message only if the message is newer than
the row (its offset), so applying any part of the log again, in order, changes nothing.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from processor.core.clock import KINDS, month_start, window_start
from processor.core.events.columns import SPAN_FLAG, Rows, concatenated
from processor.core.events.message import Message
from processor.core.events.source import Request
from processor.core.growing_arrays import I64, Records
from processor.core.partitioning import U64
from processor.core.tables import dedupe, row_block, row_bytes, row_dtype, table_rows
from processor.core.tables.dedupe import Claimed, ClaimKeys
from processor.core.tables.event_kinds import EventKinds
from processor.core.tables.horizon import Horizon
from processor.core.tables.hour_rows import HourRows
from processor.core.tables.latency_rows import LatencyRows
from processor.core.tables.numbered_rows import Dead, Drained, Record
from processor.core.tables.table_rows import NEVER, WINDOW_SIZE, Counts, Progress, Scope, Sums, WindowKey
from processor.core.tables.user_rows import UserRows

Row = Counts | Progress | Horizon
"""A row that is an object."""


class Changes(Struct):
    """The changes of a flush, to be made durable before their messages are acknowledged.

    The values are those at the time of `drain_changes`. The progress comes last: a reader of the changelog has a whole
    flush when it has the progress.
    """

    drained: list[Drained]
    claimed: list[Claimed]
    offset: int
    """The last offset of the events that these changes contain."""

    def __len__(self) -> int:
        """Return the number of changed rows."""
        return sum(each.rows for each in self.drained)

    @property
    def records(self) -> list[Record]:
        """Keys and values for the changelog; value None: a tombstone."""
        return [record for each in self.drained for record in each.records]

    def wrote(self, offsets: Sequence[int]) -> list[Dead]:
        """Note that `records` are in the changelog at `offsets`; return those that they replace."""
        dead: list[Dead] = []
        left = np.array(offsets, np.int64)
        for _, records, wrote in self.drained:
            dead += wrote(left[: len(records)])
            left = left[len(records) :]
        return dead


def _wrote_objects(rows: Sequence[tuple[Row, bytes | None]], offsets: I64) -> list[Dead]:
    """See `Drained.wrote`; a value of None is a tombstone."""
    dead = [Dead(row.changelog, 1) for row, _ in rows if row.changelog != NEVER]
    for (row, value), offset in zip(rows, offsets.tolist(), strict=True):
        if value is None:  # it may be deleted once the records before it are
            dead.append(Dead(offset, 1))
        row.changelog = offset
    return dead


class Tables:
    """One partition's rows in memory, and what has changed in them since the last `drain_changes`."""

    def __init__(self, partition: int, salt: bytes, index: dedupe.ClaimIndex) -> None:
        self.partition = partition
        self.progress = Progress(table_rows.encode_key(partition, "progress"))
        self._seed = row_block.seed_of(salt)
        self.users = UserRows(partition)
        self.hours = HourRows(partition)
        self.latencies = LatencyRows(self.hours, partition)
        self.windows: dict[WindowKey, Counts] = {}
        self._index = index
        self._keys = ClaimKeys(salt)
        self._pass = 0
        self._kinds = EventKinds(self.users, self.hours)
        self._dirty: list[Counts] = []
        self._gone: dict[bytes, Counts] = {}
        self._claimed: list[Claimed] = []
        self._horizon: Horizon | None = None
        """None: it was neither read back nor used yet."""
        self._has_swept = False

    def __len__(self) -> int:
        return len(self.users) + len(self.hours) + len(self.latencies) + len(self.windows)

    @property
    def tally(self) -> tuple[int, int]:
        """How many rows of all kinds there are, the progress aside, and how many unique events those of users have."""
        users, events = self.users.tally
        return users + self.hours.tally[0] + len(self.latencies) + len(self.windows), events

    @property
    def changed(self) -> int:
        """Rows waiting for `drain_changes`."""
        columns = self.users.changed + self.hours.changed + self.latencies.changed
        return columns + len(self._dirty) + len(self._gone)

    # --- applying messages ------------------------------------------------------------------------------------------

    def prepare(self, message: Message) -> U64:
        """The claim keys of a message, shape (n, 2). May raise; changes no table."""
        return self._keys.of(message)

    def apply(self, offset: int, message: Message, keys: U64) -> None:
        """Apply the message at `offset`; `keys` come from `prepare`. Strictly in the order of the offsets."""
        self.apply_all([(offset, message, keys)])

    def apply_all(self, messages: Sequence[tuple[int, Message, U64]]) -> None:
        """Apply several messages, at least one, with their offsets and keys, in the order of the offsets: as one after
        the other, but with as many calls of numpy as for one."""
        sizes = [len(message) for _, message, _ in messages]
        offsets = np.repeat(np.array([offset for offset, _, _ in messages], np.int64), sizes)
        rows = messages[0][1].rows if len(messages) == 1 else concatenated([found.rows for _, found, _ in messages])
        keys = _joined([keys for _, _, keys in messages])
        digests = np.ascontiguousarray(rows["digest"])
        fresh, conflicting = dedupe.resolve(self._index, keys, digests, offsets)
        has_spans = rows["flags"].max() >= SPAN_FLAG
        start = 0
        for (offset, message, _), size in zip(messages, sizes, strict=True):
            part = slice(start, start + size)
            start += size
            self._pass += 1
            self._count(offset, message.requests, fresh[part], conflicting[part])
            mine = fresh[part]
            if mine.any():
                which: slice | I64 = part if mine.all() else part.start + np.flatnonzero(mine)
                self._claimed.append(Claimed(offset, keys[which].tobytes(), digests[which].tobytes()))
                self.progress.claimed = max(self.progress.claimed, offset)
            if has_spans and offset > self.progress.offset:
                self.progress.spans += int(np.count_nonzero(rows["flags"][part][mine] & SPAN_FLAG))
            self._advance(offset, message.arrival)
        if fresh.any():
            self._add(offsets, [message for _, message, _ in messages], rows, fresh)

    def skip(self, offset: int) -> None:
        """Skip a message that is a dead letter."""
        self._advance(offset, 0)

    # --- rows of cost -----------------------------------------------------------------------------------------------

    def _add(self, offsets: I64, messages: list[Message], rows: Rows, fresh: dedupe.Mask) -> None:
        """Add the fresh calls of some messages to their rows; of fresh events there is at least one."""
        if rows["flags"].max() >= SPAN_FLAG:
            fresh = fresh & (rows["flags"] & SPAN_FLAG == 0)
            if not fresh.any():
                return
        chosen: slice | I64 = slice(None) if fresh.all() else np.flatnonzero(fresh)
        # What the rows point to in the dictionaries of their own message, in one dictionary of all messages.
        sizes = list(map(len, messages))
        first_users = np.cumsum([0, *(len(message.users) for message in messages[:-1])])
        users = (rows["user"] + np.repeat(first_users, sizes))[chosen]
        names = [user for message in messages for user in message.users]
        kinds = self._kinds.of(messages, rows["dim"].astype(np.int64), chosen)
        rows = rows if isinstance(chosen, slice) else rows.take(chosen)  # an index would copy them field by field
        offsets, errors = offsets[chosen], kinds["error"]
        hours = kinds["hour"].astype(np.int64)
        self.users.add_to(self.users.rows_of(kinds["group"].astype(np.int64), users, names), offsets, rows, errors)
        self.hours.add_to(hours, offsets, rows, errors)
        self.latencies.add(hours, offsets, rows["latency"])

    def _count(self, offset: int, requests: list[Request], fresh: dedupe.Mask, conflicting: dedupe.Mask) -> None:
        """Count each request's events where its key, its organization and its minute of arrival count."""
        totals: dict[tuple[str, str, int, str], list[int]] = {}
        start = 0
        uniques, conflicts = (
            np.concatenate(([0], fresh.cumsum())).tolist(),
            np.concatenate(([0], conflicting.cumsum())).tolist(),
        )
        for request in requests:
            end = start + request.count
            source = request.source
            minute = source.arrival - source.arrival % WINDOW_SIZE["minute"]
            total = totals.setdefault((source.organization, source.key_id, minute, source.lease), [0, 0, 0])
            unique = uniques[end] - uniques[start]
            total[0] += unique
            total[1] += end - start - unique
            total[2] += conflicts[end] - conflicts[start]
            start = end
        horizon = self.horizon
        for (organization, key, minute, lease), (unique, duplicates, conflict) in totals.items():
            scopes: tuple[tuple[Scope, str], ...] = (("org", organization), ("key", key))
            for kind in KINDS:
                window = window_start(kind, minute)
                if horizon.closes(kind, window):
                    continue
                for scope, owner in scopes:
                    self._add_to_window(offset, (scope, owner, kind, window), unique, duplicates, conflict)
            if lease:
                window = month_start(minute)
                if not horizon.closes("lease", window):
                    named: WindowKey = ("lease", f"{lease}/{organization}", "lease", window)
                    self._add_to_window(offset, named, unique, duplicates, conflict)

    def _add_to_window(self, offset: int, key: WindowKey, unique: int, duplicates: int, conflicts: int) -> None:
        """Add a request of the message at `offset`, the one now applied, unless the window has that message.

        Either way the row is written again: what is in memory may be ahead of what is durable.
        """
        row = self.windows.get(key)
        if row is None:
            row = self.windows[key] = Counts(table_rows.encode_key(self.partition, "window", *key))
            self._gone.pop(row.key, None)
        if not row.dirty:
            row.dirty = 1
            self._dirty.append(row)
        if row.open_for != self._pass:
            if row.offset >= offset:
                return
            row.offset = offset
            row.open_for = self._pass
        row.unique += unique
        row.duplicates += duplicates
        row.conflicts += conflicts

    def _advance(self, offset: int, arrival: int) -> None:
        progress = self.progress
        progress.dirty = 1
        progress.offset = max(progress.offset, offset)
        progress.watermark = max(progress.watermark, arrival)

    # --- which windows are closed -----------------------------------------------------------------------------------

    @property
    def horizon(self) -> Horizon:
        """What windows are closed by: as it was read back, or that of rows which an earlier version has written."""
        if self._horizon is None:
            key = table_rows.encode_key(self.partition, "horizon")
            is_new = self.progress.offset == NEVER
            self._horizon = Horizon(key) if is_new else Horizon.of_earlier(key, self.progress.watermark)
        return self._horizon

    def tick(self, monotonic: int, clock: int) -> None:
        """Take in a reading of the owner's clocks, see `Horizon.tick`; closed windows are removed."""
        is_further = self.horizon.tick(monotonic, clock, self.progress.watermark)
        if is_further or not self._has_swept:
            self._sweep()

    def close_by(self, horizon: Horizon) -> None:
        """Go by the horizon of other tables as it is, which is not written here. To be called again as that goes on."""
        self._horizon = Horizon(horizon.key, horizon.value())
        self._sweep()

    def _sweep(self) -> None:
        self._has_swept = True
        horizon = self.horizon
        expired = [key for key in self.windows if horizon.closes(key[2], key[3])]
        for key in expired:
            row = self.windows.pop(key)
            self._gone[row.key] = row
        if expired:
            self.progress.dirty = 1  # the next flush has their tombstones, and how many rows are left, whatever else

    # --- the changelog ----------------------------------------------------------------------------------------------

    def drain_changes(self, *, packs: bool = False) -> Changes | None:
        """The changes since the last call, to be written in their order; None if there are none. With `packs` users'
        rows are in blocks."""
        if not self.progress.dirty:
            return None
        self.progress.dirty = 0
        gone = self._gone
        changed = self._dirty
        for row in changed:
            row.dirty = 0
        if gone:
            changed = [row for row in changed if row.key not in gone]
        rows: list[tuple[Row, bytes | None]] = [(row, table_rows.encode_value(row)) for row in changed]
        rows += [(row, None) for row in gone.values() if row.changelog != NEVER]
        if self.horizon.dirty:  # with the tombstones of what it has closed
            self.horizon.dirty = 0
            rows.append((self.horizon, self.horizon.encode()))
        self.progress.rows, self.progress.events = self.tally
        rows.append((self.progress, table_rows.encode_value(self.progress)))
        users = self.users.drain(self._seed if packs else None)
        objects = Drained(len(rows), [(row.key, value) for row, value in rows], partial(_wrote_objects, rows))
        drained = [*users, *self.hours.drain(), self.latencies.drain(), objects]
        changes = Changes(drained, self._claimed, self.progress.offset)
        self._dirty, self._gone, self._claimed = [], {}, []
        return changes

    def rewrite(self, surplus: int, limit: int) -> int:
        """See `UserRows.rewrite`: the next `drain_changes` has these rows."""
        count = self.users.rewrite(surplus, limit)
        if count:
            self.progress.dirty = 1
        return count

    def touch_all(self) -> None:
        """The next `drain_changes` has every row there is."""
        for columns in (self.users, self.hours, self.latencies):
            columns.touch_all()
        fresh = [row for row in self.windows.values() if not row.dirty]
        for row in fresh:
            row.dirty = 1
        self._dirty += fresh
        self.progress.dirty = self.horizon.dirty = 1

    # --- reading back -----------------------------------------------------------------------------------------------

    def restore_all(self, records: Iterable[tuple[bytes, bytes | None, int]]) -> None:
        """Read back records of the changelog, (key, value, offset), in the order of the log or the newest of each key.

        Raises `ValueError` for one of another format.
        """
        key_of_blocks = row_block.key_of(self.partition)
        of_users, of_hours, of_latencies = starts = self._starts()
        found: dict[bytes, dict[bytes, tuple[bytes, int]]] = {start: {} for start in starts}
        for key, value, offset in records:
            if value is not None and key.startswith(starts):
                start = of_users if key.startswith(of_users) else of_hours if key.startswith(of_hours) else of_latencies
                # Sums that fit are packed, histograms never are. Neither needs a look at the numbers here.
                if (value[:1] == row_bytes.MARK) != (start == of_latencies):
                    found[start][key] = value, offset
                    continue
            if key == key_of_blocks or key.startswith(starts):  # it may be newer than one of those found so far
                self._restore_found(*found.values())
                found = {start: {} for start in starts}
            self.restore(key, value, offset)
        self._restore_found(*found.values())

    def _starts(self) -> tuple[bytes, bytes, bytes]:
        """Return the beginnings of the keys of users' rows, of hours' rows and of latencies."""
        return b'[%d,"user",' % self.partition, b'[%d,"hour",' % self.partition, b'[%d,"latency",' % self.partition

    def restore_newest(self, keys: list[bytes], values: Records, offsets: I64, size: int) -> None:
        """Read back sums in their packed form: the newest records of different keys. See `UserRows.restore`."""
        of_users, of_hours, _ = self._starts()
        others = [place for place, key in enumerate(keys) if not key.startswith(of_users)]
        if others:
            hours = [place for place in others if keys[place].startswith(of_hours)]
            for place in set(others) - set(hours):
                self.restore(keys[place], values[place].tobytes(), int(offsets[place]))
            if hours:
                self.hours.restore([keys[place] for place in hours], values.take(hours), offsets.take(hours))
            users = np.delete(np.arange(len(keys)), others)
            keys = [keys[place] for place in users.tolist()]
            values, offsets = values.take(users), offsets.take(users)
        if keys:
            self.users.restore(keys, values, offsets, size)

    def _restore_found(self, *found: dict[bytes, tuple[bytes, int]]) -> None:
        """Read back values by their keys, with the offsets of their records: packed ones of users and of hours, and
        latencies."""
        users, hours, latencies = found
        for restore, rows in ((self.users.restore, users), (self.hours.restore, hours)):
            if rows:
                values = [value for value, _ in rows.values()]
                if set(map(len, values)) != {row_bytes.SIZE}:
                    raise ValueError("not a row of the changelog: the numbers of a row have another length")
                restore(list(rows), np.frombuffer(b"".join(values), row_dtype.DTYPE), _offsets_of(rows))
        if latencies:
            self.latencies.restore(list(latencies), [value for value, _ in latencies.values()], _offsets_of(latencies))

    def restore(self, key: bytes, value: bytes | None, changelog: int) -> None:
        """Read back one changelog record, in the order of the log. Raises `ValueError` for one of another format."""
        _, kind, parts = table_rows.decode_key(key)
        if kind == "progress" and value is not None:
            self.progress = table_rows.progress_of(key, table_rows.decode_value(value), changelog)
        elif kind == "horizon" and value is not None:
            self._horizon = Horizon(key, table_rows.decode_value(value), changelog)
        elif kind in {"user", "hour"}:
            rows = self.users if kind == "user" else self.hours
            rows.restore_one(key, None if value is None else Sums(key, *table_rows.decode_value(value)), changelog)
        elif kind == row_block.KIND and value is not None:
            block = row_block.decode(value)
            offsets = np.full(len(block), changelog)
            self.users.restore(block.keys, block.values, offsets, len(block))
        elif kind == "latency":
            if value is None:
                self.latencies.remove(key)
            else:
                self.latencies.restore([key], [value], np.array([changelog]))
        elif kind == "window":
            if value is None:
                self.windows.pop(cast(WindowKey, parts), None)
            else:
                counts = Counts(key, *table_rows.decode_value(value))
                counts.changelog = changelog
                self.windows[cast(WindowKey, parts)] = counts
        elif kind != "retained":  # which is no table's
            raise ValueError(f"unknown kind of row: {key[:80]!r}")

    def newest_offsets(self) -> I64:
        """Ascending: the changelog records that hold the newest values. Every older one has been replaced."""
        others: list[Row] = [self.progress, self.horizon, *self.windows.values()]
        columns = [rows.changelogs() for rows in (self.users, self.hours, self.latencies)]
        found = np.concatenate((*columns, np.array([row.changelog for row in others], np.int64)))
        return np.unique(found[found != NEVER])


def _offsets_of(found: dict[bytes, tuple[bytes, int]]) -> I64:
    return np.array([offset for _, offset in found.values()], np.int64)


def _joined(parts: "list[NDArray[Any]]") -> "NDArray[Any]":
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
