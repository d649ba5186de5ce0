"""What a message does to its partition's tables: the one place where a number changes that somebody is billed on.

`prepare` may fail and changes nothing; `apply` does not fail. A row takes a message only if the message is newer than
the row (its offset), so applying any part of the log again, in order, changes nothing.
"""

from sys import intern
from typing import Any, Final, cast

import numpy as np
from msgspec import Struct

from processor.core import dedupe, tables
from processor.core.claims import Claimed
from processor.core.clock import KINDS, Kind, window_start
from processor.core.codec import ERROR_FLAG, UNPRICED_FLAG, Dim
from processor.core.message import Block, Message
from processor.core.tables import (
    HOURS_PER_DAY,
    NEVER,
    Counts,
    HourKey,
    Progress,
    Row,
    Scope,
    Sums,
    UserKey,
    WindowKey,
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


class Tables:
    """One partition's rows in memory, and what has changed in them since the last `take_changes`."""

    def __init__(self, partition: int, salt: bytes, index: dedupe.ClaimIndex) -> None:
        self.partition = partition
        self.progress = Progress(tables.encode_key(partition, "progress"))
        self.users: dict[UserKey, Sums] = {}
        self.hours: dict[HourKey, Sums] = {}
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
        return len(self.users) + len(self.hours) + len(self.windows)

    @property
    def changed(self) -> int:
        """Rows waiting for `take_changes`."""
        return len(self._dirty) + len(self._gone)

    # --- applying messages ------------------------------------------------------------------------------------------

    def prepare(self, message: Message) -> dedupe.U64:
        """The claim keys of a message, shape (n, 2). May raise; changes no table."""
        parts = [dedupe.claim_keys(block.ids, self._pad(block.source.project)) for block in message.blocks]
        return np.concatenate(parts)

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
        digests = np.frombuffer(b"".join([block.digests for block in message.blocks]), "<u8")
        fresh, conflicting = dedupe.resolve(self._index, keys, digests, offset)
        if fresh.any():
            self._claimed.append(Claimed(offset, keys[fresh].tobytes(), digests[fresh].tobytes()))
        start = 0
        for block in message.blocks:
            end = start + len(block)
            self._apply_block(offset, block, fresh[start:end], int(conflicting[start:end].sum()))
            start = end
        self._advance(offset, max(block.source.arrival for block in message.blocks))

    def skip(self, offset: int) -> None:
        """Pass over a message that went to the dead letters."""
        self._advance(offset, 0)

    def _apply_block(self, offset: int, block: Block, fresh: dedupe.Mask, conflicts: int) -> None:
        count = len(block)
        unique = int(fresh.sum())
        self._count(offset, block, unique, count - unique, conflicts)
        if not unique:
            return
        project = intern(block.source.project)
        rows = [self._rows(offset, project, dim) for dim in block.dims] if unique == count else None
        taken = None if unique == count else fresh.tolist()
        lazy: dict[int, tuple[Sums | None, Sums | None]] = {}
        columns = (
            block.codes,
            block.times,
            block.input_tokens,
            block.output_tokens,
            block.cached_tokens,
            block.costs,
            block.flags,
        )
        for position, (code, at, inputs, outputs, cached, cost, flags) in enumerate(zip(*columns, strict=True)):
            if taken is None:
                pair = cast("list[tuple[Sums | None, Sums | None]]", rows)[code]
            elif not taken[position]:
                continue
            else:  # a row must not appear because of a duplicate
                found = lazy.get(code)
                pair = found or lazy.setdefault(code, self._rows(offset, project, block.dims[code]))
            for row in pair:
                if row is None:
                    continue
                if not row.requests:
                    row.first_seen = row.last_seen = at
                elif at < row.first_seen:
                    row.first_seen = at
                elif at > row.last_seen:
                    row.last_seen = at
                row.requests += 1
                row.input_tokens += inputs
                row.output_tokens += outputs
                row.cached_tokens += cached
                row.cost += cost
                if flags:
                    row.errors += flags & ERROR_FLAG
                    row.unpriced += (flags & UNPRICED_FLAG) >> 1

    def _rows(self, offset: int, project: str, dim: Dim) -> tuple[Sums | None, Sums | None]:
        """The user's row and the project's hour for `dim`, each None if it has this message already."""
        user, hour, provider, model, environment = dim
        day = hour // HOURS_PER_DAY
        user_row = self.users.get((project, user, day, provider, model, environment))
        if user_row is None:
            user_key = (project, user, day, intern(provider), intern(model), intern(environment))
            user_row = self.users[user_key] = Sums(tables.encode_key(self.partition, "user", *user_key))
        hour_row = self.hours.get((project, hour, provider, model, environment))
        if hour_row is None:
            hour_key = (project, hour, intern(provider), intern(model), intern(environment))
            hour_row = self.hours[hour_key] = Sums(tables.encode_key(self.partition, "hour", *hour_key))
        return (
            user_row if self._opens(user_row, offset) else None,
            hour_row if self._opens(hour_row, offset) else None,
        )

    def _count(self, offset: int, block: Block, unique: int, duplicates: int, conflicts: int) -> None:
        source = block.source
        scopes: tuple[tuple[Scope, str], ...] = (("org", source.organization), ("key", source.key_id))
        for kind in KINDS:
            start = window_start(kind, source.arrival)
            if tables.is_expired(kind, start, self.progress.watermark):
                continue
            for scope, owner in scopes:
                row = self._window(scope, owner, kind, start)
                if self._opens(row, offset):
                    row.unique += unique
                    row.duplicates += duplicates
                    row.conflicts += conflicts

    def _window(self, scope: Scope, owner: str, kind: Kind, start: int) -> Counts:
        key: WindowKey = (scope, owner, kind, start)
        row = self.windows.get(key)
        if row is None:
            row = self.windows[key] = Counts(tables.encode_key(self.partition, "window", *key))
            self._gone.pop(row.key, None)
        return row

    def _opens(self, row: Sums | Counts, offset: int) -> bool:
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

    def restore(self, key: bytes, value: bytes | None, changelog: int) -> None:
        """Read back one changelog record, in the order of the log. Raises `ValueError` for one of another format."""
        _, kind, parts = tables.decode_key(key)
        if kind == "progress" and value is not None:
            offset, watermark = tables.decode_value(value)
            self.progress = Progress(key, offset, watermark, changelog)
        elif kind == "user":
            project, user, day, provider, model, environment = parts
            user_key = (intern(project), user, day, intern(provider), intern(model), intern(environment))
            self._restore(self.users, user_key, key, value, changelog)
        elif kind == "hour":
            project, hour, provider, model, environment = parts
            hour_key = (intern(project), hour, intern(provider), intern(model), intern(environment))
            self._restore(self.hours, hour_key, key, value, changelog)
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
            row = self.users.get(cast(UserKey, parts))
        elif kind == "hour":
            row = self.hours.get(cast(HourKey, parts))
        else:
            row = self.windows.get(cast(WindowKey, parts))
        return row is not None and row.changelog <= offset
