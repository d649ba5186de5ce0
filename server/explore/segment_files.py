"""The files of segments, for reading: footers, which are kept, and row groups, each with what it may contain.

Only segments that a manifest names are opened, and only below the store's directory. pyarrow reads row groups one by
one here; scans of whole files are DuckDB's (`engine`).
"""

import errno
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct
from numpy.typing import NDArray

from processor.core.clock import EPOCH
from processor.event_store.id_index import U32, Kind, SoughtHashes, text_hashes
from processor.event_store.manifest import ID_FORM, Segment
from processor.event_store.schema import FEW_VALUES, SCHEMA
from processor.event_store.user_counts import Tally
from server.explore import cost_column
from server.explore.chosen_rows import ChosenRows, ColumnPlaces, Values, table_of
from server.explore.conditions import FIRST
from server.explore.engine import SegmentGone, too_many_files, unreadable
from server.explore.kept_summaries import KeptSummaries

KEPT_GROUPS: Final = 20_000
"""Row groups whose footers are kept, about 6 KiB each, and 2 KiB of where the columns are of each that was read."""

DICTIONARIES: Final = (*FEW_VALUES, "error_code", "prompt_hash", "name")
"""Columns that are read as dictionaries. Of a row group of 32,768 rows all columns then take 20 ms instead of 27."""

KEPT_INDEXES: Final = 4096
"""Most indexes that are kept, each with an open file."""

INDEX_FILES: Final = 0.25
"""Part of the files that the process may have open which these take at most."""

FEW_IDS: Final = 8
"""Ids that are looked up one by one in an index: 0.02 ms each."""

_MICRO: Final = timedelta(microseconds=1)

T = TypeVar("T")


class Groups(Struct, frozen=True):
    """The row groups of a file, an item each in every array."""

    first_row: NDArray[np.int64]
    rows: NDArray[np.int64]
    time_min: NDArray[np.int64]
    """Event times of the rows, microseconds since the epoch."""
    time_max: NDArray[np.int64]
    offset_min: NDArray[np.int64]
    """The lowest and highest offset of a message that a row is from."""
    offset_max: NDArray[np.int64]
    calls: NDArray[np.int64]
    """How many of the rows are calls, where that is known without reading them; else -1."""
    in_session: NDArray[np.int64]
    """How many of the rows name a session; -1 where the file does not say."""


class SegmentFile:
    """One Parquet file. For any threads, each read opens it anew."""

    def __init__(self, path: Path) -> None:
        """Read the footer. Raises `SegmentGone`, and `Refused` for one that is damaged."""
        self.path = path
        try:
            self._footer = _reading(path, lambda: pq.read_metadata(path))
            self._places = ColumnPlaces(self._footer)
            self.groups = _groups(self._footer)
        except (LookupError, ValueError, OverflowError) as error:  # columns, texts and times that are none
            raise unreadable(path.name) from error
        if not self._places.leaves.keys() >= {*SCHEMA.names}:
            raise unreadable(path.name)

    def opened(self) -> "OpenFile":
        """Open it for one thread. Raises `SegmentGone`."""
        return OpenFile(self.path, self._footer, self._places, DICTIONARIES)

    def opened_coded(self) -> "OpenFile":
        """Open it for one thread, with tags as maps of dictionaries, which `plain` cannot undo. Raises `SegmentGone`.

        They take a third of the time that maps of texts do; with many different values they are still one chunk."""
        return OpenFile(self.path, self._footer, self._places, [*DICTIONARIES, *_TAGS])


class OpenFile:
    """A Parquet file that is open, and stays readable when it is deleted."""

    def __init__(self, path: Path, footer: Any, places: ColumnPlaces, dictionaries: Sequence[str]) -> None:
        self._path = path
        self._source = _reading(path, lambda: pa.OSFile(str(path)))
        try:
            self._file = _reading(
                path,
                lambda: pq.ParquetFile(self._source, metadata=footer, read_dictionary=dictionaries, pre_buffer=False),
            )
        except KeyError as error:  # one of the dictionaries
            raise unreadable(path.name) from error
        self._footer = footer
        self._costs = places.leaves[cost_column.NAME][0].number
        self._chosen = ChosenRows(self._source.fileno(), places)

    def read(self, group: int, columns: Sequence[str] | None = None) -> Any:
        """Return a row group as a `pyarrow.Table`; of all columns, or of some. `plain` makes it one of the schema."""
        return _reading(self._path, lambda: self._file.read_row_group(group, columns=columns, use_threads=False))

    def read_coded(self, group: int, columns: Sequence[str]) -> Any:
        """Return the same of some columns, of which the kernel reads the costs where it can."""
        if cost_column.NAME not in columns:
            return self.read(group, columns)
        costs = _reading(self._path, lambda: cost_column.read_costs(self._source, self._footer, group, self._costs))
        if costs is None:
            return self.read(group, columns)
        rest = [name for name in columns if name != cost_column.NAME]
        if not rest:
            return pa.table({cost_column.NAME: costs})
        return self.read(group, rest).append_column(cost_column.NAME, costs)

    def find(self, group: int, wanted: Mapping[str, Collection[str]]) -> NDArray[np.int64]:
        """Return the rows of a row group that have, in each of some columns, one of some texts: ascending."""
        found: NDArray[np.int64] | None = None
        for column, texts in wanted.items():
            rows = self._rows_with(group, column, [*texts]) if texts else np.empty(0, np.int64)
            found = rows if found is None else np.intersect1d(found, rows, assume_unique=True)
            if not len(found):
                break
        return np.empty(0, np.int64) if found is None else found

    def _rows_with(self, group: int, column: str, texts: Sequence[str]) -> NDArray[np.int64]:
        found = _reading(self._path, lambda: self._chosen.find(group, column, texts))
        if found is None:
            values = self.read(group, [column])[column]
            mask = _reading(self._path, lambda: pc.is_in(values, value_set=pa.array(texts, pa.string())))
            found = pc.indices_nonzero(mask).to_numpy().astype(np.int64)
        return found

    def values(self, group: int, columns: Sequence[str], rows: NDArray[np.int64]) -> list[Values] | None:
        """Return the same as `take`, column by column, if these are few rows that need not be read as tables."""
        return _reading(self._path, lambda: self._chosen.values(group, columns, rows))

    def take(self, group: int, columns: Sequence[str], rows: NDArray[np.int64]) -> Any:
        """Return some rows of a row group, which are ascending, as a `pyarrow.Table` of the store's schema."""
        found = self.values(group, columns, rows)
        if found is not None:
            return table_of(columns, found)
        return _reading(self._path, lambda: _checked(self.read(group, columns), columns, rows))

    def close(self) -> None:
        """Close the file."""
        self._file.close(force=True)
        self._source.close()


def _checked(table: Any, columns: Sequence[str], rows: NDArray[np.int64]) -> Any:
    """Return some rows of a table with the types of the store's schema. Raises `pa.ArrowException` where it has fewer
    rows than its footer says, and for texts that are none, which pyarrow reads."""
    found = plain(table.take(pa.array(rows)).select(list(columns)))
    found.validate(full=True)
    return found


_TAGS: Final = ("tags.key_value.key", "tags.key_value.value")


def plain(table: Any) -> Any:
    """Return a table with the types of the store's schema."""
    return table.cast(pa.schema([SCHEMA.field(name) for name in table.schema.names]))


def _reading(path: Path | str, work: Callable[[], T]) -> T:
    """`path` may be a file's name, which is less to make."""
    try:
        return work()
    except FileNotFoundError as error:
        raise SegmentGone(str(path)) from error
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) in {errno.EMFILE, errno.ENFILE}:
            raise too_many_files() from error
        raise unreadable(Path(path).name) from error


def _groups(footer: Any) -> Groups:
    columns = {footer.schema.column(number).path: number for number in range(footer.num_columns)}
    time, offset, kind, session = (columns[name] for name in ("timestamp", "log_offset", "kind", "session_id"))
    rows, times, offsets, calls, in_session = [], [], [], [], []
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        rows.append(group.num_rows)
        times.append(_range(group.column(time).statistics, _micros, (FIRST, 2**62)))
        offsets.append(_range(group.column(offset).statistics, int, (0, 2**62)))
        kinds = _range(group.column(kind).statistics, str, ("", "~"))
        calls.append({("call", "call"): group.num_rows, ("span", "span"): 0}.get(kinds, -1))
        sessions = group.column(session).statistics
        is_known = sessions is not None and sessions.has_null_count
        in_session.append(group.num_rows - sessions.null_count if is_known else -1)
    counts = np.array(rows, np.int64)
    bounds, places = (np.array(each, np.int64).reshape(-1, 2) for each in (times, offsets))
    return Groups(
        np.cumsum(counts) - counts,
        counts,
        bounds[:, 0],
        bounds[:, 1],
        places[:, 0],
        places[:, 1],
        np.array(calls, np.int64),
        np.array(in_session, np.int64),
    )


def _range(statistics: Any, read: Callable[[Any], T], unknown: tuple[T, T]) -> tuple[T, T]:
    if statistics is None or not statistics.has_min_max:
        return unknown
    return read(statistics.min), read(statistics.max)


def _micros(moment: Any) -> int:
    micros: int = (moment - EPOCH) // _MICRO
    return micros


class FileCache(Generic[T]):
    """The most recently used of some things that are made from segments' files; for any threads."""

    def __init__(self, make: Callable[[Segment], T], most: int, weight: Callable[[T], int] = lambda made: 1) -> None:
        self._make = make
        self._most = most
        self._weight = weight
        self._items: OrderedDict[str, T] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def get(self, segment: Segment) -> T:
        """Return that of a segment, made anew where it is not kept; raises what making it raises."""
        name = segment.id
        with self._lock:
            found = self._items.get(name)
            if found is not None:
                self._items.move_to_end(name)
                return found
        made = self._make(segment)
        with self._lock:
            if name not in self._items:
                self._items[name] = made
                self._total += self._weight(made)
            while self._total > self._most and len(self._items) > 1:
                _, oldest = self._items.popitem(last=False)
                self._total -= self._weight(oldest)
        return made

    def keep_only(self, names: Iterable[str]) -> None:
        """Forget all others."""
        wanted = set(names)
        with self._lock:
            for name in [each for each in self._items if each not in wanted]:
                self._total -= self._weight(self._items.pop(name))


def _kept_indexes() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return KEPT_INDEXES if limit == resource.RLIM_INFINITY else max(1, min(KEPT_INDEXES, int(limit * INDEX_FILES)))


@lru_cache(64)
def _sought_hashes(texts: tuple[str, ...]) -> SoughtHashes:
    """Return the hashes of some ids: each segment is asked for the same ones."""
    return SoughtHashes(np.unique(text_hashes(texts)))


class SegmentIds(Protocol):
    """The index of a segment: which row groups may have an id."""

    def row_groups(self, kind: Kind, text: str, /) -> Sequence[int]:
        """Return row groups that may have `text` as their `event`, `trace`, `session` or `user` id; no other has it."""
        ...

    def entries(self, kind: Kind, wanted: SoughtHashes, /) -> tuple[U32, NDArray[np.uint16]]:
        """Return hash and row group of what the segment has of many `trace`, `session` or `user` ids, by their hashes
        (`id_index.text_hashes`)."""
        ...

    def tally(self, project: str, user: str, /) -> Tally | None:
        """Return how many events a user of a project has in the segment; None: it is not said."""
        ...


class SegmentFiles:
    """All files of the store's directory, as they are needed; for any threads."""

    def __init__(self, directory: Path, open_index: Callable[[Path, Segment], SegmentIds]) -> None:
        self._directory = directory
        self._indexes = FileCache(
            lambda segment: _reading(path := self.path(segment.id, ".idx"), lambda: open_index(path, segment)),
            _kept_indexes(),
        )
        self._files = FileCache(
            lambda segment: SegmentFile(self.path(segment.id)), KEPT_GROUPS, lambda made: len(made.groups.rows)
        )
        self.summaries: Final = KeptSummaries()
        """Of row groups."""

    def path(self, segment_id: str, suffix: str = ".parquet") -> Path:
        """Return where a file of a segment is. Raises `ValueError` for what is no segment's id."""
        if ID_FORM(segment_id) is None:
            raise ValueError(f"not the id of a segment: {segment_id[:80]!r}")
        return self._directory / f"{segment_id}{suffix}"

    def get(self, segment: Segment) -> SegmentFile:
        """Return a segment's Parquet file. Raises `SegmentGone`."""
        return self._files.get(segment)

    def groups_with(self, segment: Segment, kind: Kind, texts: Iterable[str]) -> set[int]:
        """Return the row groups of a segment that may have one of some ids. Raises `SegmentGone` and `Refused`."""
        index = self._indexes.get(segment)
        wanted = [*texts]
        if kind != "event" and len(wanted) > FEW_IDS:
            _, groups = self.entries(segment, kind, _sought_hashes(tuple(wanted)))
            return {*groups.tolist()}
        return _reading(
            _index_of(segment), lambda: {group for text in wanted for group in index.row_groups(kind, text)}
        )

    def entries(self, segment: Segment, kind: Kind, wanted: SoughtHashes) -> tuple[U32, NDArray[np.uint16]]:
        """Return hash and row group of what a segment has of many ids: `IdIndex.entries`. Raises as `groups_with`."""
        index = self._indexes.get(segment)
        return _reading(_index_of(segment), lambda: index.entries(kind, wanted))

    def tally(self, segment: Segment, project: str, user: str) -> Tally | None:
        """Return how many events a user has in a segment; None: it is not said. Raises as `groups_with`."""
        index = self._indexes.get(segment)
        return _reading(_index_of(segment), lambda: index.tally(project, user))

    def forget_all_but(self, segments: Iterable[Segment]) -> None:
        """Drop what is kept of segments that are no longer live."""
        names = {segment.id for segment in segments}
        self._files.keep_only(names)
        self._indexes.keep_only(names)
        self.summaries.keep_only(names)


def _index_of(segment: Segment) -> str:
    return f"{segment.id}.idx"
