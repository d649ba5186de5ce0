"""What one question sees of the event store: the live segments at one moment, up to an offset of each partition.

A snapshot never changes, so that all pages of a list are those of the first: compaction replaces segments by others
with the same rows, and rows behind the upper offsets are left out wherever they have come to lie.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Struct
from numpy.typing import NDArray

from processor.core.clock import LAST, SECOND, format_timestamp
from processor.event_store import id_hashes
from processor.event_store.first_build import BuildReport
from processor.event_store.id_index import U32, Kind, SoughtHashes
from processor.event_store.manifest import ProjectSums, Segment
from processor.event_store.schema import SCHEMA
from server.errors import Refused
from server.explore.conditions import FIRST, Condition, condition, within
from server.explore.engine import Engine
from server.explore.far_rows import FarRows, Whole
from server.explore.questions import Filters, Kinds, Times
from server.explore.segment_files import Groups, SegmentFile, SegmentFiles
from server.explore.sums import number_json

INDEXED: Final[dict[str, Kind]] = {"event_id": "event", "trace_id": "trace", "session_id": "session", "user_id": "user"}
"""Column -> its kind in the id index."""

FEW: Final = 64
"""Row groups up to which an id is looked for row group by row group, whatever it is."""

SPARSE: Final = 4
"""Row groups are so many times those that may have some ids, where these are sparse: DuckDB reads a million texts in
40 ms, as long as a dozen row groups take here. It does so with each statement and each join anew: 95 traces of 100
million events took it 17 s of CPU, and take 0.3 s here."""

FAR_GROUPS: Final = 2000
"""Row groups that are looked through for traces beyond the range of a question; a millisecond or two each."""

FAR_PART: Final = 0.7
"""The part of all row groups up to which that is faster than to read everything, where there are more of them."""

FEW_SOUGHT: Final = 1000
"""Ids that are looked for in an index before the footer is read."""

FEW_UNNAMED: Final = 256
"""The same for events without a session, of which DuckDB reads all row groups between the first one and the last."""

GATHERED: Final = 200_000
"""Rows with an id that are held in memory. More of them, as of a trace that has millions, DuckDB reads in the files."""

_NEAR: Final = 1000
"""Microseconds within which it is said from when on there are so many rows."""

EVERYTHING: Final = Filters(kinds="all")
ALWAYS: Final = Times()


_PLACE: Final = frozenset({"log_partition", "log_offset"})
_SESSION: Final = frozenset({"session_id"})


def building_json(report: BuildReport) -> dict[str, int | None]:
    """Return how far a first build is, as an answer has it."""
    return {"done": report.done, "of": report.of, "secondsLeft": report.seconds_left}


class Piece(Struct, frozen=True, kw_only=True):
    """The rows of one project in one segment, as far as they may be among those that are asked for."""

    segment: Segment
    sums: ProjectSums
    since: int | None
    """Rows of messages before this offset are not asked for; None: there are none in this segment."""
    before: int | None
    """Rows of messages from this offset on are behind the snapshot; None: there are none in this segment."""
    groups: tuple[int, ...] | None = None
    """Row groups that may have one of the ids asked for; None: any."""

    @property
    def is_whole(self) -> bool:
        """Whether no row of the segment is left out for the offset of its message."""
        return self.since is None and self.before is None

    def may_be_within(self, times: Times) -> bool:
        """Return whether a row of the piece may be of these times."""
        before_end = times.end is None or self.sums.time_min < times.end
        return before_end and (times.start is None or self.sums.time_max >= times.start)

    def is_only(self, kinds: Kinds) -> bool:
        """Return whether all rows of the piece are of a kind."""
        return kinds == "all" or self.sums.calls == (self.sums.rows if kinds == "call" else 0)

    def is_within(self, times: Times) -> bool:
        """Return whether all rows of the piece are of these times."""
        after_start = times.start is None or self.sums.time_min >= times.start
        return after_start and (times.end is None or self.sums.time_max < times.end)


class Relation(Struct, frozen=True):
    """The matching rows, as a SELECT of all columns of `processor.event_store.schema` to put into another one.

    Its `?` come first among the parameters of the whole statement.
    """

    sql: str
    params: list[Any]
    segments: tuple[Segment, ...]
    """Those that may have matching rows."""


class Snapshot:
    """The rows of the store that one question sees. For one thread; `engine` is that of the question."""

    def __init__(
        self,
        engine: Engine,
        files: SegmentFiles,
        segments: Iterable[Segment],
        bounds: Mapping[int, int],
        *,
        as_of: int,
        lag: int,
        since: Mapping[int, int] = {},
        building: BuildReport | None = None,
    ) -> None:
        """Make a snapshot.

        `segments` are the live ones, `bounds` the first offset of each partition that is not in the snapshot, `as_of`
        the arrival up to which it is complete and `lag` how far the store is behind, in microseconds. Of each partition
        rows from the offset in `since` on are seen; without one there all are. `building`: how far a store is that has
        much to go through. Raises `Refused` (unavailable) if the
        store does not reach the bounds, because it is being built anew.
        """
        self.engine = engine
        self.files = files
        self.bounds = dict(bounds)
        self.since = dict(since)
        self.as_of = as_of
        self.lag = lag
        self.building = building
        self._live = tuple(segments)
        self._check()
        self.segments = tuple(each for each in self._live if self._sees(each))

    def _check(self) -> None:
        reached: dict[int, int] = {}
        for each in self._live:
            reached[each.partition] = max(each.end, reached.get(each.partition, 0))
        if any(bound > reached.get(partition, 0) for partition, bound in self.bounds.items()):
            raise Refused("unavailable", "The event store is being built anew from the log; ask again", retry_after=5)

    def _sees(self, segment: Segment) -> bool:
        bound, since = self.bounds.get(segment.partition, 0), self.since.get(segment.partition, 0)
        return segment.start < bound and segment.end > since

    def frozen(self, bounds: Mapping[int, int], as_of: int) -> "Snapshot":
        """Return an earlier snapshot of the same rows, as far as retention has left them. Raises `Refused`."""
        return Snapshot(self.engine, self.files, self._live, bounds, as_of=as_of, lag=self.lag, building=self.building)

    def behind(self, position: Mapping[int, int]) -> "Snapshot":
        """Return a snapshot of the rows from these offsets on."""
        return Snapshot(
            self.engine, self.files, self._live, self.bounds, as_of=self.as_of, lag=self.lag, since=position
        )

    def stamp(self) -> dict[str, Any]:
        """Return the members that every answer has: how far it is complete, and how far a first build is."""
        lag = number_json(round(self.lag / SECOND, 3))
        found = {"asOf": format_timestamp(self.as_of - self.as_of % 1000), "lagSeconds": lag}
        return found if self.building is None else {**found, "building": building_json(self.building)}

    @property
    def floor(self) -> int:
        """A number that grows when retention deletes rows of the snapshot, and by nothing else, but for messages that
        were not counted: of how many messages the rows are not kept."""
        ends = ((each, min(each.end, self.bounds[each.partition])) for each in self.segments)
        return sum(end - each.start for each, end in ends if each.is_absent)

    def pieces(self, project: str, filters: Filters, times: Times) -> list[Piece]:
        """Return where matching rows may be, by what manifests and id indexes say. Raises `SegmentGone`."""
        wanted = ids_of(filters)
        return [piece for piece in self._of(project, times) for piece in self._narrowed(piece, wanted)]

    def rows_for_certain(self, project: str, filters: Filters, times: Times) -> int:
        """Return how many rows match at least, by what manifests alone say."""
        if _both_kinds(filters) != EVERYTHING:
            return 0
        pieces = [each for each in self._of(project, times) if each.is_whole and each.is_within(times)]
        return sum(each.sums.rows for each in pieces if each.is_only(filters.kinds))

    def latest(
        self, project: str, filters: Filters, times: Times, rows: int | None, *, in_session: bool = False
    ) -> int | None:
        """Return from when on about `rows` rows of `times` may match, by the times of row groups.

        `in_session`: of those that name a session. None: there are no more than that in all, or `rows` is None. Reads
        the footers of the latest segments. Raises `SegmentGone`.
        """
        if rows is None:
            return None
        pieces = sorted(self.pieces(project, filters, times), key=lambda piece: piece.sums.time_max, reverse=True)
        spread = _Spread(times, in_session)
        for number, piece in enumerate(pieces):
            self.engine.check()
            spread.add(piece, self.file(piece).groups)
            following = pieces[number + 1].sums.time_max if number + 1 < len(pieces) else None
            if following is None or spread.rows_from(following + 1) >= rows:
                return spread.start_of(rows, following)
        return None

    def _of(self, project: str, times: Times) -> Iterator[Piece]:
        for segment in self.segments:
            sums = _sums_of(segment, project)
            if sums is None or (times.start is not None and sums.time_max < times.start):
                continue
            if times.end is None or sums.time_min < times.end:
                yield self._piece(segment, sums)

    def _piece(self, segment: Segment, sums: ProjectSums) -> Piece:
        since, before = self.since.get(segment.partition, 0), self.bounds[segment.partition]
        return Piece(
            segment=segment,
            sums=sums,
            since=since if segment.start < since else None,
            before=before if segment.end > before else None,
        )

    def _narrowed(self, piece: Piece, wanted: Mapping[str, Sequence[str]]) -> Iterator[Piece]:
        """Yield the piece with the row groups that may have the ids, if there are any."""
        groups = piece.groups
        for column, values in wanted.items():
            self.engine.check()
            found = self.files.groups_with(piece.segment, INDEXED[column], filter(None, values))
            groups = tuple(sorted(found if groups is None else found.intersection(groups)))
            if not groups:
                return
        yield msgspec.structs.replace(piece, groups=groups)

    def condition(self, project: str, filters: Filters, times: Times, pieces: Sequence[Piece]) -> Condition:
        """Return what rows of these pieces have to meet: those of the project, below the snapshot's upper offsets.

        What the manifests say of all rows is not asked of each: of a question for a user's events the times alone would
        be a third. The project always is.
        """
        if all(piece.is_within(times) for piece in pieces):
            times = ALWAYS
        if all(piece.is_only(filters.kinds) for piece in pieces):
            filters = _both_kinds(filters)
        found = condition(project, filters, times)
        limits = [(piece.segment.partition, sign, at) for piece in pieces for sign, at in _limits(piece)]
        for partition, sign, at in dict.fromkeys(limits):
            found &= Condition(f"(log_partition <> ? OR log_offset {sign} ?)", [partition, at], _PLACE)
        return found

    def relation(
        self,
        project: str,
        filters: Filters,
        times: Times,
        *,
        everything: bool = False,
        columns: Sequence[str] | None = None,
        dense: bool = False,
    ) -> Relation:
        """Return the rows of `project` that agree to `filters` and `times`, for statements of this snapshot's engine.

        With `everything` those of both kinds, whatever `filters.kinds` says. `columns`: those that the statement reads,
        where it does not need all. Reads the row groups of ids at once; with `dense`, where these may have many rows in
        each, only if most row groups have none. Raises `Refused`, `Stopped`, `SegmentGone`.
        """
        if everything:
            filters = _both_kinds(filters)
        pieces = self.pieces(project, filters, times)
        where = self.condition(project, filters, times, pieces)
        segments = tuple(piece.segment for piece in pieces)
        if self._are_sparse(pieces, ids_of(filters), dense):
            gathered = self._gather(pieces, filters, where, columns)
            if gathered is not None:
                source = self.engine.register(gathered)
                return Relation(f"SELECT * FROM {source} WHERE {where.sql}", where.params, segments)
        return self._in_files(pieces, where)

    def _are_sparse(self, pieces: Sequence[Piece], ids: Mapping[str, Sequence[str]], dense: bool) -> bool:
        """Return whether some ids are found sooner in the row groups that may have them than in all of them by DuckDB.

        Where these are more than `FEW`, that is said of events and traces, which have few rows in each.
        """
        groups = sum(FEW + 1 if piece.groups is None else len(piece.groups) for piece in pieces)
        if groups <= FEW and not dense:
            return True
        is_seldom = groups <= self._groups_of(pieces) // SPARSE
        return is_seldom and (groups <= FEW if dense else not ids.keys().isdisjoint(("trace_id", "event_id")))

    def _in_files(self, pieces: Sequence[Piece], where: Condition) -> Relation:
        paths = [str(self.path(piece)) for piece in pieces]
        where &= within(self._span_of(pieces))
        segments = tuple(piece.segment for piece in pieces)
        return Relation(f"SELECT * FROM read_parquet(?) WHERE {where.sql}", [paths, *where.params], segments)

    def without_session(self, project: str, traces: Any) -> Relation | None:
        """Return the rows that name no session of some traces, and perhaps others of the same row groups.

        `traces` is an Arrow array of texts. None: there are no such row groups. Raises as `relation`.
        """
        sought, found = _Sought.of("trace_id", traces), []
        for piece in self.pieces(project, EVERYTHING, ALWAYS):
            self.engine.check()
            groups = None
            if len(sought.distinct.hashes) <= FEW_SOUGHT:  # the index has it sooner than a footer that is not kept
                _, groups = self.files.entries(piece.segment, sought.kind, sought.distinct)
                if not len(groups):
                    continue
            footer = self.file(piece).groups
            has_some = footer.in_session != footer.rows
            if not has_some.any():
                continue
            if groups is None:
                _, groups = self.files.entries(piece.segment, sought.kind, sought.distinct)
            groups = np.unique(groups[has_some[groups]])
            if len(groups):
                found.append(msgspec.structs.replace(piece, groups=tuple(groups.tolist())))
        if not found:
            return None
        where = self.condition(project, EVERYTHING, ALWAYS, found) & Condition("session_id IS NULL", [], _SESSION)
        if len(traces) <= FEW_SOUGHT and sum(len(piece.groups or ()) for piece in found) <= FEW_UNNAMED:
            filters = Filters(equal={"trace_id": tuple(traces.to_pylist())}, kinds="all")
            gathered = self._gather(found, filters, where, ("trace_id", "session_id"))
            if gathered is not None:
                sql = f"SELECT * FROM {self.engine.register(gathered)} WHERE {where.sql}"
                return Relation(sql, where.params, tuple(piece.segment for piece in found))
        return self._in_files(found, where)

    def _span_of(self, pieces: Sequence[Piece]) -> Times:
        """Return the times of the row groups that may have the ids asked for: DuckDB leaves out the others by them."""
        bounds = []
        for piece in pieces:
            if piece.groups is None:
                return ALWAYS
            footer, groups = self.file(piece).groups, list(piece.groups)
            bounds.append((int(footer.time_min[groups].min()), int(footer.time_max[groups].max())))
        return Times(min(low for low, _ in bounds), max(high for _, high in bounds) + 1) if bounds else ALWAYS

    def _groups_of(self, pieces: Iterable[Piece]) -> int:
        return sum(len(self.file(piece).groups.rows) for piece in pieces)

    def around(self, project: str, times: Times, column: str, ids: Any, columns: Sequence[str]) -> Relation | None:
        """Return all rows of `times`, and of the others those with one of many ids in an indexed column.

        `ids` is an Arrow array of texts. None: too much would have to be looked for in the others. Raises as
        `relation`.
        """
        pieces = self.pieces(project, EVERYTHING, ALWAYS)
        near = [piece for piece in pieces if piece.may_be_within(times)]
        far = self._elsewhere(project, pieces, times, _Sought.of(column, ids), columns, FAR_PART, {}, None)
        if far is None or not near:
            return far
        found = self.condition(project, EVERYTHING, ALWAYS, pieces) & within(times)
        listed = ", ".join(sorted({*columns, *found.columns}))
        return Relation(
            f"SELECT {listed} FROM read_parquet(?) WHERE {found.sql} UNION ALL SELECT {listed} FROM ({far.sql})",
            [[str(self.path(piece)) for piece in near], *found.params, *far.params],
            tuple(piece.segment for piece in near),
        )

    def elsewhere(
        self,
        project: str,
        times: Times,
        column: str,
        ids: Any,
        columns: Sequence[str],
        part: float = FAR_PART,
        *,
        whole: Whole | None = None,
        through: str | None = None,
    ) -> Any:
        """Return the rows of other times with one of many ids in an indexed column, as a `pyarrow.Table`.

        `ids` is an Arrow array of texts, `part` of all row groups may be looked through. With `through`, another column
        of ids, these are all rows of the same row groups that have the same of them as one of those; `whole` is told
        which these are. Else rows with an id are left out of the row groups that `whole` has it in. None: it would be
        too much. Raises as `relation`.
        """
        pieces = self.pieces(project, EVERYTHING, ALWAYS)
        sought = _Sought.of(column, ids)
        found = self._elsewhere(project, pieces, times, sought, columns, part, {} if whole is None else whole, through)
        if found is None:
            return None
        return self.engine.table(f"SELECT {', '.join(columns)} FROM ({found.sql})", found.params)

    def _elsewhere(
        self,
        project: str,
        pieces: Sequence[Piece],
        times: Times,
        sought: "_Sought",
        columns: Sequence[str],
        part: float,
        whole: Whole,
        through: str | None,
    ) -> Relation | None:
        """Return the rows of other times with one of some ids; None: too much would have to be looked for."""
        far = [found for piece in pieces for found in self._with_ids(piece, times, sought)]
        if sum(len(ids) for _, ids in far) > max(FAR_GROUPS, part * self._groups_of(pieces)):
            return None
        where, inside = self.condition(project, EVERYTHING, ALWAYS, pieces), within(times)
        names = sorted({*columns, *where.columns, *inside.columns})
        rows = FarRows(self.files.summaries, project, sought.column, names, through)
        for piece, by_group in far:
            known, check = _known_of(piece), self.engine.check
            if not rows.add(piece.segment.id, self.file(piece), by_group, known, whole, check):
                return None
            self.engine.goes_on |= rows.has_kept
        source, listed = self.engine.register(rows.gathered.table()), ", ".join(names)
        sql = f"SELECT {listed} FROM {source} WHERE {where.sql} AND NOT ({inside.sql})"
        return Relation(sql, [*where.params, *inside.params], ())

    def _with_ids(self, piece: Piece, times: Times, sought: "_Sought") -> Iterator[tuple[Piece, dict[int, set[str]]]]:
        """Yield the piece with the row groups that may have some of the ids at other times, and these; or nothing."""
        self.engine.check()
        if piece.is_within(times) or not len(sought.ids):
            return
        hashes, groups = self.files.entries(piece.segment, sought.kind, sought.distinct)
        footer = self.file(piece).groups
        outside = np.zeros(len(footer.rows), np.bool_)
        outside |= times.start is not None and footer.time_min < times.start
        outside |= times.end is not None and footer.time_max >= times.end
        here = outside[groups]
        found: dict[int, set[str]] = {}
        for text, group in zip(*sought.having(hashes[here], groups[here]), strict=True):
            found.setdefault(group, set()).add(text)
        if found:
            yield piece, found

    def _gather(
        self, pieces: Iterable[Piece], filters: Filters, where: Condition, columns: Sequence[str] | None
    ) -> Any:
        """Return the rows that have the ids asked for, as a table in memory; nothing else is checked.

        None: there are more than `GATHERED` of them.
        """
        wanted = ids_of(filters)
        names = None if columns is None else sorted({*columns, *where.columns})
        schema = SCHEMA if names is None else pa.schema([SCHEMA.field(name) for name in names])
        tables, count = [schema.empty_table()], 0
        for piece in pieces:
            with closing(self.file(piece).opened()) as opened:
                for group in piece.groups or ():
                    self.engine.check()
                    rows = opened.find(group, wanted)
                    count += len(rows)
                    if count > GATHERED:
                        return None
                    if len(rows):
                        tables.append(opened.take(group, schema.names, rows))
        return pa.concat_tables(tables)

    def path(self, piece: Piece) -> Path:
        """Return where the file of a piece is."""
        return self.files.path(piece.segment.id)

    def file(self, piece: Piece) -> SegmentFile:
        """Return the file of a piece. Raises `SegmentGone`."""
        return self.files.get(piece.segment)


class _Spread:
    """How rows are spread over time, by their row groups: as if within each they were even."""

    def __init__(self, times: Times, in_session: bool) -> None:
        self._in_session = in_session
        self._first = FIRST if times.start is None else times.start
        self._end = LAST + 1 if times.end is None else times.end
        self._low, self._high, self._rows = (np.empty(0, np.int64) for _ in range(3))

    def add(self, piece: Piece, groups: Groups) -> None:
        """Add the rows of a piece."""
        first, last = piece.sums.first_row, piece.sums.first_row + piece.sums.rows
        rows = np.minimum(groups.first_row + groups.rows, last) - np.maximum(groups.first_row, first)
        if self._in_session:
            rows = np.where(groups.in_session < 0, rows, np.minimum(groups.in_session, rows))
        wanted = rows > 0
        if piece.groups is not None:
            wanted &= np.isin(np.arange(len(rows)), piece.groups)
        self._low = np.concatenate([self._low, groups.time_min[wanted]])
        self._high = np.concatenate([self._high, groups.time_max[wanted] + 1])
        self._rows = np.concatenate([self._rows, rows[wanted]])

    def rows_from(self, start: int) -> float:
        """Return about how many rows of the range are not before a time."""
        inside = np.minimum(self._high, self._end) - np.maximum(self._low, max(start, self._first))
        return float((self._rows * (np.maximum(inside, 0) / (self._high - self._low))).sum())

    def start_of(self, rows: int, following: int | None) -> int | None:
        """Return from when on there are about so many rows; None: there are no more. Behind `following`
        there are."""
        low, high = self._first if following is None else following + 1, self._end
        if self.rows_from(low) <= rows:
            return None if following is None else low
        while high - low > _NEAR:
            middle = (low + high) // 2
            if self.rows_from(middle) < rows:
                high = middle
            else:
                low = middle
        return low


class _Sought(NamedTuple):
    """Many ids of one kind."""

    column: str
    kind: Kind
    ids: Any
    """An Arrow array of texts."""
    order: NDArray[np.int64]
    """Their places in the order of their hashes."""
    hashes: U32
    """In that order."""
    distinct: SoughtHashes

    @classmethod
    def of(cls, column: str, ids: Any) -> "_Sought":
        """Hash them; none is null."""
        hashes = id_hashes.of_texts(ids)
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        is_first = np.concatenate([[True], hashes[1:] != hashes[:-1]]) if len(hashes) else np.empty(0, np.bool_)
        return cls(column, INDEXED[column], ids, order, hashes, SoughtHashes(hashes[is_first]))

    def having(self, hashes: U32, groups: NDArray[np.uint16]) -> tuple[list[str], list[int]]:
        """Return the ids with the hashes of some entries of an index, and the row group that each entry names."""
        starts, ends = (np.searchsorted(self.hashes, hashes, side) for side in ("left", "right"))
        counts = ends - starts
        before = np.cumsum(counts) - counts
        places = np.repeat(starts - before, counts) + np.arange(int(counts.sum()))
        texts: list[str] = self.ids.take(pa.array(self.order[places])).to_pylist()
        return texts, np.repeat(groups, counts).tolist()


def ids_of(filters: Filters) -> dict[str, tuple[str, ...]]:
    """Return the ids that are asked for in columns of the id index: each matching row has one of those of each."""
    found = {column: tuple(each for each in values if each is not None) for column, values in filters.equal.items()}
    return {
        column: texts
        for column, texts in found.items()
        if column in INDEXED and len(texts) == len(filters.equal[column])
    }


def _limits(piece: Piece) -> Iterator[tuple[str, int]]:
    if piece.since is not None:
        yield ">=", piece.since
    if piece.before is not None:
        yield "<", piece.before


def _both_kinds(filters: Filters) -> Filters:
    return msgspec.structs.replace(filters, kinds="all")


def _sums_of(segment: Segment, project: str) -> ProjectSums | None:
    place = bisect_left(segment.projects, project, key=lambda each: each.project)  # they are in the order of the rows
    found = segment.projects[place : place + 1]
    return found[0] if found and found[0].project == project else None


def _known_of(piece: Piece) -> dict[str, str | int]:
    """Return columns of which all rows of a piece have the same value, and that value."""
    if len(piece.segment.projects) > 1:
        return {}
    return {"project": piece.sums.project, "log_partition": piece.segment.partition}
