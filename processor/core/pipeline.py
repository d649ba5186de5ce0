"""What a message does to its partition's tables: the one place where a number changes that somebody is billed on.

`prepare` may fail and changes nothing; `apply` does not fail. A row takes a message only if the message is newer than
the row (its offset), so applying any part of the log again, in order, changes nothing.
"""

from collections.abc import Iterable, Sequence
from operator import getitem
from sys import intern
from typing import Any, Final, cast

import numpy as np
from msgspec import Struct

from processor.core import dedupe, latency, packed, sums, tables
from processor.core.claims import Claimed
from processor.core.clock import KINDS, month_start, window_start
from processor.core.columns import SUMMED, UNPRICED_FLAG, Dim, Rows
from processor.core.event import ERRORS
from processor.core.message import Block, Message
from processor.core.tables import (
    HOURS_PER_DAY,
    NEVER,
    WINDOW_SIZE,
    Counts,
    Histogram,
    HourKey,
    Progress,
    Row,
    Scope,
    Sums,
    UserKey,
    WindowKey,
    WindowKind,
)

MAX_PADS: Final = 10_000
"""Projects whose pads are kept at hand."""


class Changes(Struct):
    """What to make durable before the messages it came from are acknowledged."""

    rows: list[tuple[Row, bytes | None]]
    """Each changed row with its changelog value; None: the row is gone (a tombstone)."""
    claimed: list[Claimed]
    offset: int
    """The last source offset these changes contain."""


_GroupKey = tuple[str, int, str, str, str]
"""project, day, provider, model, environment: a `UserKey` without its user."""


class UserRows(dict[str | None, Sums]):
    """The rows of all users that have the rest of their key in common; asked for one that is not there, makes it."""

    def __init__(self, partition: int, shared: _GroupKey) -> None:
        super().__init__()
        self._partition = partition
        self._shared = shared

    def __missing__(self, user: str | None) -> Sums:
        project, *rest = self._shared
        row = self[user] = Sums(tables.encode_key(self._partition, "user", project, user, *rest))
        return row


class Tables:
    """One partition's rows in memory, and what has changed in them since the last `take_changes`."""

    def __init__(self, partition: int, salt: bytes, index: dedupe.ClaimIndex) -> None:
        self.partition = partition
        self.progress = Progress(tables.encode_key(partition, "progress"))
        self._users: dict[_GroupKey, UserRows] = {}
        self.hours: dict[HourKey, Sums] = {}
        self.latencies: dict[HourKey, Histogram] = {}
        self.windows: dict[WindowKey, Counts] = {}
        self._index = index
        self._salt = salt
        self._pads: dict[str, dedupe.U64] = {}
        self._pass = 0
        self._dirty: list[Row] = []
        self._gone: dict[bytes, Counts] = {}
        self._claimed: list[Claimed] = []
        self._sweep_at = 0

    def __len__(self) -> int:
        return sum(map(len, self._users.values())) + len(self.hours) + len(self.latencies) + len(self.windows)

    @property
    def users(self) -> dict[UserKey, Sums]:
        """The rows by user, in one dictionary made for the call."""
        return {
            (project, user, day, provider, model, environment): row
            for (project, day, provider, model, environment), group in self._users.items()
            for user, row in group.items()
        }

    @property
    def changed(self) -> int:
        """Rows waiting for `take_changes`."""
        return len(self._dirty) + len(self._gone)

    # --- applying messages ------------------------------------------------------------------------------------------

    def prepare(self, message: Message) -> dedupe.U64:
        """The claim keys of a message, shape (n, 2). May raise; changes no table."""
        pads = [self._pad(block.source.project) for block in message.blocks]
        if all(pad is pads[0] for pad in pads):
            return dedupe.claim_keys(message.rows["id"], pads[0])
        return dedupe.claim_keys(message.rows["id"], np.repeat(pads, list(map(len, message.blocks)), axis=0))

    def _pad(self, project: str) -> dedupe.U64:
        pad = self._pads.get(project)
        if pad is None:
            if len(self._pads) >= MAX_PADS:
                self._pads.clear()
            pad = self._pads[project] = dedupe.project_pad(project, self._salt)
        return pad

    def apply(self, offset: int, message: Message, keys: dedupe.U64) -> None:
        """Apply the message at `offset`; `keys` come from `prepare`. Strictly in the order of the offsets."""
        self._pass += 1
        digests = np.ascontiguousarray(message.rows["digest"])
        fresh, conflicting = dedupe.resolve(self._index, keys, digests, offset)
        self._count(offset, message.blocks, fresh, conflicting)
        if fresh.all():
            self._claimed.append(Claimed(offset, keys.tobytes(), digests.tobytes()))
            self._add(offset, message, slice(None))
        elif fresh.any():
            self._claimed.append(Claimed(offset, keys[fresh].tobytes(), digests[fresh].tobytes()))
            self._add(offset, message, fresh)
        self._advance(offset, max(block.source.arrival for block in message.blocks))

    def skip(self, offset: int) -> None:
        """Pass over a message that went to the dead letters."""
        self._advance(offset, 0)

    # --- rows of cost -----------------------------------------------------------------------------------------------

    def _add(self, offset: int, message: Message, fresh: dedupe.Mask | slice) -> None:
        """Add the fresh events of a message to their rows, of which there is at least one."""
        blocks = message.blocks
        rows = message.rows[fresh]
        # What the rows point to in the dictionary of their own block, in one dictionary of all blocks.
        sizes = list(map(len, blocks))
        dims = rows["dim"] + np.repeat(_starts([len(block.dims) for block in blocks]), sizes)[fresh]
        users = rows["user"] + np.repeat(_starts([len(block.users) for block in blocks]), sizes)[fresh]
        errors = np.array([dim[-1] in ERRORS for block in blocks for dim in block.dims])[dims]
        self._add_to_users(offset, blocks, rows, dims, users, errors)
        self._add_to_hours(offset, blocks, rows, dims, errors)

    def _add_to_users(
        self, offset: int, blocks: list[Block], rows: Rows, dims: sums.Codes, users: sums.Codes, errors: dedupe.Mask
    ) -> None:
        """Nearly every event has a row of its own here, so this loop over the events is what a message costs most."""
        every = [user for block in blocks for user in block.users]
        needed = set(dims.tolist())  # a group must not appear because of a duplicate
        groups = [
            self._group(intern(block.source.project), dim) if number in needed else None
            for number, (block, dim) in enumerate((block, dim) for block in blocks for dim in block.dims)
        ]
        now, dirty = self._pass, self._dirty
        columns = [rows[name].tolist() for name in ("at", *SUMMED, "flags")]
        theirs: Iterable[Sums] = map(  # in C, with the making of a new row behind it (`UserRows`)
            getitem,
            cast("Iterable[UserRows]", map(groups.__getitem__, dims.tolist())),
            map(every.__getitem__, users.tolist()),
        )
        for row, error, at, inputs, outputs, cached, cost, flags in zip(theirs, errors.tolist(), *columns, strict=True):
            if row.open_for != now:  # `_opens`, written out
                if not row.dirty:
                    row.dirty = 1
                    dirty.append(row)
                if row.offset >= offset:
                    continue
                row.offset = offset
                row.open_for = now
            if row.requests:
                row.requests += 1
                if at < row.first_seen:
                    row.first_seen = at
                elif at > row.last_seen:
                    row.last_seen = at
                row.input_tokens += inputs
                row.output_tokens += outputs
                row.cost += cost
            else:
                row.requests = 1
                row.first_seen = row.last_seen = at
                row.input_tokens = inputs
                row.output_tokens = outputs
                row.cost = cost
            if cached:
                row.cached_tokens += cached
            if error:
                row.errors += 1
            if flags:
                row.unpriced += flags & UNPRICED_FLAG

    def _add_to_hours(
        self, offset: int, blocks: list[Block], rows: Rows, dims: sums.Codes, errors: dedupe.Mask
    ) -> None:
        numbers: dict[HourKey, int] = {}
        hours = [
            numbers.setdefault((block.source.project, *dim[:4]), len(numbers)) for block in blocks for dim in block.dims
        ]
        keys = list(numbers)
        codes = np.array(hours, np.int64)[dims]
        self._add_latencies(offset, keys, codes, rows)
        for found in sums.by_group(codes, rows, errors):
            row = self._hour(keys[found.code])
            if not self._opens(row, offset):
                continue
            row.first_seen = min(row.first_seen, found.first) if row.requests else found.first
            row.last_seen = max(row.last_seen, found.last) if row.requests else found.last
            row.requests += found.events
            row.errors += found.errors
            row.unpriced += found.unpriced
            inputs, outputs, cached, cost = found.sums
            row.input_tokens += inputs
            row.output_tokens += outputs
            row.cached_tokens += cached
            row.cost += cost

    def _add_latencies(self, offset: int, keys: list[HourKey], codes: sums.Codes, rows: Rows) -> None:
        """Count the events of each hour (`codes` counts in `keys`) by the bucket of their latency."""
        pairs, counts = np.unique(codes * latency.BUCKETS + rows["latency"], return_counts=True)
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            code, bucket = divmod(pair, latency.BUCKETS)
            if bucket == latency.UNKNOWN:
                continue
            row = self._histogram(keys[code])
            if self._opens(row, offset):
                row.counts[bucket] = row.counts.get(bucket, 0) + count

    def _group(self, project: str, dim: Dim) -> UserRows:
        """The rows of the users for `dim`."""
        hour, provider, model, environment, _, _ = dim
        key = (project, hour // HOURS_PER_DAY, provider, model, environment)
        group = self._users.get(key)
        if group is None:
            key = (project, key[1], intern(provider), intern(model), intern(environment))
            group = self._users[key] = UserRows(self.partition, key)
        return group

    def _hour(self, key: HourKey) -> Sums:
        row = self.hours.get(key)
        if row is None:
            key = _hour_key(key)
            row = self.hours[key] = Sums(tables.encode_key(self.partition, "hour", *key))
        return row

    def _histogram(self, key: HourKey) -> Histogram:
        row = self.latencies.get(key)
        if row is None:
            key = _hour_key(key)
            row = self.latencies[key] = Histogram(tables.encode_key(self.partition, "latency", *key))
        return row

    # --- windows ----------------------------------------------------------------------------------------------------

    def _count(self, offset: int, blocks: list[Block], fresh: dedupe.Mask, conflicting: dedupe.Mask) -> None:
        """Count each request's events where its key, its organisation and its minute of arrival count."""
        totals: dict[tuple[str, str, int, str], list[int]] = {}
        start = 0
        uniques, conflicts = (
            np.concatenate(([0], fresh.cumsum())).tolist(),
            np.concatenate(([0], conflicting.cumsum())).tolist(),
        )
        for block in blocks:
            end = start + len(block)
            source = block.source
            minute = source.arrival - source.arrival % WINDOW_SIZE["minute"]
            total = totals.setdefault((source.organization, source.key_id, minute, source.lease), [0, 0, 0])
            unique = uniques[end] - uniques[start]
            total[0] += unique
            total[1] += end - start - unique
            total[2] += conflicts[end] - conflicts[start]
            start = end
        for (organization, key, minute, lease), (unique, duplicates, conflict) in totals.items():
            scopes: tuple[tuple[Scope, str], ...] = (("org", organization), ("key", key))
            for kind in KINDS:
                window = window_start(kind, minute)
                if tables.is_expired(kind, window, self.progress.watermark):
                    continue
                for scope, owner in scopes:
                    self._add_to_window(offset, (scope, owner, kind, window), unique, duplicates, conflict)
            if lease:
                window = month_start(minute)
                if not tables.is_expired("lease", window, self.progress.watermark):
                    named: WindowKey = ("lease", f"{lease}/{organization}", "lease", window)
                    self._add_to_window(offset, named, unique, duplicates, conflict)

    def _add_to_window(self, offset: int, key: WindowKey, unique: int, duplicates: int, conflicts: int) -> None:
        row = self._window(*key)
        if self._opens(row, offset):
            row.unique += unique
            row.duplicates += duplicates
            row.conflicts += conflicts

    def _window(self, scope: Scope, owner: str, kind: WindowKind, start: int) -> Counts:
        key: WindowKey = (scope, owner, kind, start)
        row = self.windows.get(key)
        if row is None:
            row = self.windows[key] = Counts(tables.encode_key(self.partition, "window", *key))
            self._gone.pop(row.key, None)
        return row

    def _opens(self, row: Sums | Counts | Histogram, offset: int) -> bool:
        """True if `row` may take the message at `offset`, the one now applied.

        Either way the row is written again: what is in memory may be ahead of what is durable.
        """
        if not row.dirty:
            row.dirty = 1
            self._dirty.append(row)
        if row.open_for == self._pass:
            return True
        if row.offset >= offset:
            return False
        row.offset = offset
        row.open_for = self._pass
        return True

    def _advance(self, offset: int, arrival: int) -> None:
        progress = self.progress
        progress.dirty = 1
        progress.offset = max(progress.offset, offset)
        progress.watermark = max(progress.watermark, arrival)
        if progress.watermark >= self._sweep_at:
            self._sweep_at = progress.watermark + tables.WINDOW_SIZE["minute"]
            self._sweep()

    def _sweep(self) -> None:
        watermark = self.progress.watermark
        expired = [key for key in self.windows if tables.is_expired(key[2], key[3], watermark)]
        for key in expired:
            row = self.windows.pop(key)
            self._gone[row.key] = row

    # --- the changelog ----------------------------------------------------------------------------------------------

    def take_changes(self) -> Changes | None:
        """The changes since the last call, to be written in this order; None if no message was applied or skipped.

        The progress row comes last: who reads the changelog has a whole flush when it has the progress.
        """
        if not self.progress.dirty:
            return None
        self.progress.dirty = 0
        gone = self._gone
        changed = self._dirty
        for row in changed:
            row.dirty = 0
        if gone:
            changed = [row for row in changed if row.key not in gone]
        rows: list[tuple[Row, bytes | None]] = list(zip(changed, tables.encode_values(changed), strict=True))
        rows += [(row, None) for row in gone.values() if row.changelog != NEVER]
        rows.append((self.progress, tables.encode_value(self.progress)))
        changes = Changes(rows, self._claimed, self.progress.offset)
        self._dirty, self._gone, self._claimed = [], {}, []
        return changes

    def restore_packed(self, keys: Sequence[bytes], values: Sequence[bytes], changelog: Sequence[int]) -> None:
        """Read back sums in their packed form: newest records of different keys, with their offsets. 2 µs each.

        Raises `ValueError` for one of another format.
        """
        start = b'[%d,"user",' % self.partition
        of_users = [place for place, key in enumerate(keys) if key.startswith(start)]
        if len(of_users) < len(keys):
            for place in set(range(len(keys))) - set(of_users):
                self.restore(keys[place], values[place], changelog[place])
            keys, values = [keys[place] for place in of_users], [values[place] for place in of_users]
            changelog = [changelog[place] for place in of_users]
        users = tables.decode_users(keys)
        numbers = np.frombuffer(b"".join(values), packed.DTYPE).tolist()
        groups = self._users
        for user, key, offset, row in zip(users, keys, changelog, numbers, strict=True):
            shared = (user.project, user.day, user.provider, user.model, user.environment)
            group = groups.get(shared) or self._group_of(shared)
            _, requests, errors, unpriced, at, inputs, outputs, cached, cost, first, last = row
            group[user.user] = Sums(
                key, at, requests, errors, inputs, outputs, cached, cost, unpriced, first, last, offset
            )

    def _group_of(self, shared: _GroupKey) -> UserRows:
        project, day, provider, model, environment = shared
        key = (intern(project), day, intern(provider), intern(model), intern(environment))
        return self._users.setdefault(key, UserRows(self.partition, key))

    def restore(self, key: bytes, value: bytes | None, changelog: int) -> None:
        """Read back one changelog record, in the order of the log. Raises `ValueError` for one of another format."""
        _, kind, parts = tables.decode_key(key)
        if kind == "progress" and value is not None:
            offset, watermark = tables.decode_value(value)
            self.progress = Progress(key, offset, watermark, changelog)
        elif kind == "user":
            project, user, day, provider, model, environment = parts
            self._restore(self._group_of((project, day, provider, model, environment)), user, key, value, changelog)
        elif kind == "hour":
            self._restore(self.hours, _hour_key(parts), key, value, changelog)
        elif kind == "latency":
            hour_key = _hour_key(parts)
            if value is None:
                self.latencies.pop(hour_key, None)
            else:
                numbers = tables.decode_value(value)
                self.latencies[hour_key] = Histogram(key, numbers[0], tables.histogram_of(numbers), changelog)
        elif kind == "window":
            if value is None:
                self.windows.pop(cast(WindowKey, parts), None)
            else:
                counts = Counts(key, *tables.decode_value(value))
                counts.changelog = changelog
                self.windows[cast(WindowKey, parts)] = counts
        else:
            raise ValueError(f"unknown kind of row: {key[:80]!r}")

    @staticmethod
    def _restore(rows: dict[Any, Sums], at: Any, key: bytes, value: bytes | None, changelog: int) -> None:
        if value is None:
            rows.pop(at, None)
        else:
            sums = Sums(key, *tables.decode_value(value))
            sums.changelog = changelog
            rows[at] = sums

    def is_live(self, key: bytes, offset: int) -> bool:
        """True unless a newer changelog record has replaced the one at `offset`: what compaction asks."""
        _, kind, parts = tables.decode_key(key)
        row: Row | None
        if kind == "progress":
            row = self.progress
        elif kind == "user":
            project, user, *rest = parts
            row = self._users.get(cast(_GroupKey, (project, *rest)), {}).get(user)
        elif kind == "hour":
            row = self.hours.get(cast(HourKey, parts))
        elif kind == "latency":
            row = self.latencies.get(cast(HourKey, parts))
        else:
            row = self.windows.get(cast(WindowKey, parts))
        return row is not None and row.changelog <= offset


def _hour_key(parts: tuple[Any, ...]) -> HourKey:
    """The key of an hour with its strings kept once."""
    project, hour, provider, model, environment = parts
    return intern(project), hour, intern(provider), intern(model), intern(environment)


def _starts(sizes: list[int]) -> sums.Codes:
    """Where each of several lists begins when they are put one after the other."""
    return np.concatenate(([0], np.cumsum(sizes[:-1], dtype=np.int64)))
