"""The versions of prompts in one pass over the row groups, in numpy.

DuckDB (`prompts`) computes the same with any filters, and is what this is tested against. It reads every column of the
range for each question. Here each row group is added up once: its sums are kept, with the values for quantiles, until
its segment is merged, so that the next question reads new row groups alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import islice, pairwise
from sys import getsizeof
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from processor.core.money import PICO, PLACES
from processor.event_store.segment_sums import picodollars
from server.explore import aggregation, sums
from server.explore.cell_parts import SUMS, RowGroup
from server.explore.cell_reader import sums_by
from server.explore.cells import TooMany
from server.explore.column_codes import column_codes
from server.explore.exact_sums import NONE, SCALE, Moments, NotFinite, moments, whole_moments
from server.explore.kept_summaries import SummaryKey
from server.explore.measures import WIDEST, Quantile, measures
from server.explore.questions import Filters, Times
from server.explore.ranks import rank
from server.explore.row_scan import RowScan, RowSpan
from server.explore.segment_files import OpenFile
from server.explore.snapshot import Snapshot
from server.explore.span_reader import SpanReader, is_filtered_by_fields, micros_of

MOST_VERSIONS: Final = 200
"""Of an answer: some steps are taken for each of them in each row group, in Python."""
MOST_FILTERED: Final = 50
"""The same of a row group whose sums are not kept: with more of them DuckDB is faster."""
MOST_NAMES: Final = 50
"""Different scores of a row group."""

TOGETHER: Final = 16
"""Row groups that are added up at once."""

_ADDED: Final = (
    *(sums.REQUESTS, sums.ERROR_COUNT, sums.CALLS),
    *map(sums.tokens, ("input_tokens", "output_tokens", "cached_tokens")),
)
_COLUMNS: Final = (
    *("timestamp", "latency_ms", "ttft_ms", "cost_usd", "eval_scores"),
    *sorted({column for part in _ADDED for column in SUMS[part].columns}),
)
_NUMBERS: Final = ("latency_ms", "ttft_ms")
"""Columns with quantiles."""

Values = NDArray[np.float64]
Places = NDArray[np.int64]


class VersionSums(NamedTuple):
    """What the events of one version in a row group add up to."""

    first: int
    last: int
    added: tuple[int, ...]
    """As `_ADDED`."""
    cost: Moments
    """Picodollars."""
    moments: tuple[Moments, ...]
    """As `_NUMBERS`."""
    values: tuple[Values, ...]
    scores: Mapping[str, Moments]


class Version:
    """All events of a version."""

    def __init__(self, parts: Sequence[VersionSums]) -> None:
        self.first = min(each.first for each in parts)
        self.last = max(each.last for each in parts)
        self._added = dict(zip(_ADDED, map(sum, zip(*(each.added for each in parts), strict=True)), strict=True))
        self._cost = _joined(each.cost for each in parts)
        self._moments = {
            column: _joined(each.moments[number] for each in parts) for number, column in enumerate(_NUMBERS)
        }
        self._values = {
            column: np.concatenate([each.values[number] for each in parts]) for number, column in enumerate(_NUMBERS)
        }
        names = sorted({name for each in parts for name in each.scores})
        self.scores = {name: _joined(each.scores.get(name, NONE) for each in parts) for name in names}

    @property
    def requests(self) -> int:
        """How many events it has."""
        return self._added[sums.REQUESTS]

    @property
    def errors(self) -> int:
        """How many of them failed."""
        return self._added[sums.ERROR_COUNT]

    @property
    def cost(self) -> Decimal:
        """Dollars."""
        return Decimal(f"{self._cost.total >> SCALE}e-{PLACES}")

    def row(self, parts: Sequence[str | Quantile]) -> list[Any]:
        """Return parts of measures, as DuckDB would: those of `prompts`."""
        found: dict[str | Quantile, Any] = {
            sums.COST: self.cost,
            sums.UNPRICED: self._added[sums.CALLS] - self._cost.size,
            sums.START: self.first,
            sums.LAST_SEEN: self.last,
        }
        found.update(self._added)
        found.update(_statistics("cost_usd", self._cost, Fraction(1, PICO)))
        for column in _NUMBERS:
            found.update(_statistics(column, self._moments[column], Fraction(1)))
            quantiles = [each for each in parts if isinstance(each, Quantile) and each.column == column]
            found.update(_ranked(self._values[column], quantiles))
        return [found[part] for part in parts]


def _joined(found: Iterator[Moments]) -> Moments:
    sizes, totals, squares = zip(*found, strict=True)
    return Moments(sum(sizes), sum(totals), sum(squares))


def _statistics(column: str, of: Moments, unit: Fraction) -> dict[str | Quantile, Any]:
    """Return the parts of mean, deviation and count."""
    mean, deviation, count = measures([f"{column}:{each}" for each in ("avg", "sd", "count")])[0]
    total = None if of.sum is None else of.sum * unit
    return {mean.parts[0]: total, deviation.parts[0]: of.deviation(unit), count.parts[0]: of.size}


def _ranked(values: Values, quantiles: Sequence[Quantile]) -> dict[str | Quantile, Any]:
    if not len(values):
        return dict.fromkeys(quantiles)
    places = [rank(each.percent, len(values)) - 1 for each in quantiles]
    values.partition(sorted(set(places)))
    return {each: float(values[place]) for each, place in zip(quantiles, places, strict=True)}


def read_versions(snapshot: Snapshot, project: str, filters: Filters, times: Times) -> dict[str, Version] | None:
    """Return prompt_hash -> version; None: this is not made for these filters, or there are too many versions.

    Raises `Refused`, `Stopped`, `SegmentGone`.
    """
    if not is_filtered_by_fields(filters):
        return None
    try:
        return _Reader(snapshot, project, filters, times).read()
    except (TooMany, NotFinite):
        return None


class _Reader:
    """The pass over the rows."""

    def __init__(self, snapshot: Snapshot, project: str, filters: Filters, times: Times) -> None:
        self._snapshot = snapshot
        self._kept = snapshot.files.summaries
        self._project = project
        self._filters = filters
        self._times = times
        self._spans = SpanReader(filters, times)
        self._is_plain = filters == Filters(kinds=filters.kinds)
        self._found: dict[str, list[VersionSums]] = {}
        self._read: list[tuple[SummaryKey | None, _Versions | None]] = []
        """Row groups that are still to be added up, and what their sums are kept as."""

    def read(self) -> dict[str, Version]:
        """Read all rows."""
        with RowScan(self._snapshot, self._project, self._filters, self._times) as scan:
            if sum(piece.sums.rows for piece in scan.pieces) > aggregation.EXACT:
                raise TooMany  # quantiles are counted then
            spans = [span for piece in scan.pieces for span in scan.spans(piece)]
            self._check_known(spans)
            try:
                for span in spans:
                    self._add_span(scan, span)
                self._add_read()
            except TooMany:
                for key, each in self._read:
                    self._keep_names(key, () if each is None else each.names)
                raise
        return {name: Version(parts) for name, parts in self._found.items()}

    def _add(self, found: Mapping[str, VersionSums]) -> None:
        for name, each in found.items():
            self._found.setdefault(name, []).append(each)
        if len(self._found) > MOST_VERSIONS:
            raise TooMany

    def _check_known(self, spans: Sequence[RowSpan]) -> None:
        """Raise `TooMany` where that is known of row groups that were read before: none has to be read for that."""
        names: set[str] = set()
        for number, span in enumerate(spans):
            if number % _LOOK == 0:
                self._snapshot.engine.check()
            key = self._key(span)
            if key is not None:
                names.update(self._kept.get(key) or self._kept.get(_of_names(key)) or ())
            if len(names) > MOST_VERSIONS:
                raise TooMany

    def _key(self, span: RowSpan) -> SummaryKey | None:
        """Return what the sums of a row group are kept as; None: they are not."""
        if not (self._is_plain and span.is_below):
            return None
        what = ("versions", self._filters.kinds, *self._spans.cut(span))
        return SummaryKey(span.piece.segment.id, span.group, self._project, what)

    def _keep_names(self, key: SummaryKey | None, names: Sequence[str]) -> None:
        """Keep which versions a row group has that is not added up, as there are too many."""
        if key is not None and names:
            self._kept.keep(_of_names(key), tuple(names), sum(map(getsizeof, names)))

    def _add_span(self, scan: RowScan, span: RowSpan) -> None:
        key = self._key(span)
        found: Mapping[str, VersionSums] | None = None if key is None else self._kept.get(key)
        if found is not None:
            self._add(found)
            return
        self._snapshot.engine.check()
        self._read.append((key, self._versions(scan.opened_coded(span.piece), span, key)))
        if len(self._read) >= TOGETHER:
            self._add_read()

    def _add_read(self) -> None:
        keys, read = [key for key, _ in self._read], [each for _, each in self._read]
        self._read.clear()
        summed = iter(_summed([each for each in read if each is not None]))
        added = [{} if each is None else next(summed) for each in read]
        for key, found in zip(keys, added, strict=True):
            if key is not None:
                self._kept.keep(key, found, sum(getsizeof(name) + _size(of) for name, of in found.items()))
        for found in added:
            self._add(found)

    def _versions(self, opened: OpenFile, span: RowSpan, key: SummaryKey | None) -> "_Versions | None":
        """Return the matching rows of a row group that are of a version; None: there are none."""
        group = self._spans.read(opened, span, ("prompt_hash",))
        codes = column_codes(group.table["prompt_hash"])
        names = [*dict.fromkeys(value for value in codes.values if value is not None)]
        if not names:
            return None
        numbers = {name: number for number, name in enumerate(names)}
        local = np.array([-1 if value is None else numbers[value] for value in codes.values])[codes.places]
        rows = np.flatnonzero(local >= 0 if group.kept is None else (local >= 0) & group.kept)
        is_call = group.is_call
        if not isinstance(is_call, bool):
            of_row = np.zeros(len(local), np.bool_)
            of_row[slice(None) if group.kept is None else group.kept] = is_call
            is_call = of_row
        rows = rows[np.argsort(local[rows].astype(np.uint16), kind="stable")]  # by radix: 16 bits are not compared
        there, starts, counts = np.unique(local[rows], return_index=True, return_counts=True)
        if not len(there):
            return None
        if len(there) > (MOST_VERSIONS if self._is_plain else min(MOST_FILTERED, MOST_VERSIONS)):
            self._keep_names(key, [names[number] for number in there[: MOST_VERSIONS + 1].tolist()])
            raise TooMany
        table = opened.read_coded(span.group, _COLUMNS).take(pa.array(rows + span.begin))
        return _Versions(
            RowGroup(table, None, is_call if isinstance(is_call, bool) else is_call[rows]),
            [names[number] for number in there.tolist()],
            starts,
            np.repeat(np.arange(len(there)), counts),
        )


def _of_names(key: SummaryKey) -> SummaryKey:
    """Return what the names of versions are kept as."""
    return key._replace(what=("names", *key.what))


_LOOK: Final = 256
"""Row groups of which it is found out whether they are known before it is looked whether the question has to end."""


class _Numbers(NamedTuple):
    """Numbers of a row group, those of each version, or of each score of each, together."""

    values: NDArray[Any]
    counts: Places
    """How many each has."""


class _Versions(NamedTuple):
    """The rows of a row group that are of a version, those of each version together."""

    group: RowGroup
    names: Sequence[str]
    starts: Places
    """Where the rows of each version begin."""
    local: Places
    """Of each row, the version, as its place in `names`."""

    def plain(self) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """Yield the first three members of `VersionSums`."""
        added = []
        for part in _ADDED:
            low, high = sums_by(self.local, len(self.names), SUMS[part].values(self.group))
            added.append([below + (above << 32) for below, above in zip(low.tolist(), high.tolist(), strict=True)])
        micros = micros_of(self.group.table)
        firsts, lasts = (each.reduceat(micros, self.starts).tolist() for each in (np.minimum, np.maximum))
        return zip(firsts, lasts, zip(*added, strict=True), strict=True)

    def costs(self) -> _Numbers:
        """Return those of calls with a price, in picodollars."""
        column = self.group.table["cost_usd"].chunk(0)
        counts = self.group.of_calls(column.is_valid().to_numpy(zero_copy_only=False))
        return self._numbers(picodollars(column), counts)

    def numbers(self, column: str) -> _Numbers:
        """Return those of a column that count."""
        array = self.group.table[column].chunk(0)
        values = array.to_numpy(zero_copy_only=False)
        return self._numbers(
            values, values > 0 if column == "latency_ms" else array.is_valid().to_numpy(zero_copy_only=False)
        )

    def _numbers(self, values: NDArray[Any], counts: NDArray[np.bool_]) -> _Numbers:
        local = self.local
        if not counts.all():
            values, local = values[counts], local[counts]
        return _Numbers(values, np.bincount(local, minlength=len(self.names)))

    def scores(self) -> tuple[list[tuple[int, str]], _Numbers]:
        """Return which version, by its place, has which score, and their values."""
        maps = self.group.table["eval_scores"].chunk(0)
        # The pairs of a map lie between its offset and the next one, in the children as they are without a slice.
        offsets = maps.offsets.to_numpy()
        first, pairs = int(offsets[0]), int(offsets[-1] - offsets[0])
        if not pairs:
            return [], _Numbers(np.empty(0), np.empty(0, np.int64))
        names, values = maps.keys.slice(first, pairs).dictionary_encode(), maps.items.slice(first, pairs)
        listed = names.dictionary.to_pylist()
        if len(listed) > MOST_NAMES:
            raise TooMany
        cells = np.repeat(self.local, np.diff(offsets)) * len(listed) + names.indices.to_numpy()
        there = np.flatnonzero(np.bincount(cells))
        valued, numbers = values.is_valid().to_numpy(zero_copy_only=False), values.to_numpy(zero_copy_only=False)
        if not valued.all():  # a score may be without a value
            cells, numbers = cells[valued], numbers[valued]
        order = np.argsort(cells.astype(np.uint16), kind="stable")
        counts = np.bincount(cells, minlength=int(there[-1]) + 1)[there]
        places = [(cell // len(listed), listed[cell % len(listed)]) for cell in there.tolist()]
        return places, _Numbers(numbers[order], counts)


def _summed(read: Sequence[_Versions]) -> Iterator[dict[str, VersionSums]]:
    """Yield the sums of the versions of each of some row groups: together, as most of the time is that of each step."""
    costs = _apart(whole_moments, [each.costs() for each in read])
    numbers = [[each.numbers(column) for each in read] for column in _NUMBERS]
    of_numbers = [_apart(_clamped, each) for each in numbers]
    scores = [each.scores() for each in read]
    of_scores = _apart(_clamped, [values for _, values in scores])
    for place, each in enumerate(read):
        names: list[dict[str, Moments]] = [{} for _ in each.names]
        for (version, name), found in zip(scores[place][0], of_scores[place], strict=True):
            names[version][name] = found
        values = zip(*(_parted(of[place]) for of in numbers), strict=True)
        of_versions = zip(*(of[place] for of in of_numbers), strict=True)
        rest = zip(each.names, each.plain(), costs[place], of_versions, values, names, strict=True)
        yield {name: VersionSums(*plain, *found) for name, plain, *found in rest}


def _apart(made: Callable[[Any, Places], list[Moments]], numbers: Sequence[_Numbers]) -> list[list[Moments]]:
    """Return those of each group, of each of `numbers`."""
    if not numbers:
        return []
    found = iter(made(*(np.concatenate(each) for each in zip(*numbers, strict=True))))
    return [[*islice(found, len(each.counts))] for each in numbers]


def _clamped(values: Values, counts: Places) -> list[Moments]:
    """Return them as `measures` has means and deviations: of numbers that are not too large for their squares."""
    return moments(np.clip(values, -WIDEST, WIDEST), counts)


def _parted(numbers: _Numbers) -> list[Values]:
    ends = np.cumsum(numbers.counts).tolist()
    return [numbers.values[start:end].copy() for start, end in pairwise([0, *ends])]


def _size(found: VersionSums) -> int:
    """Return about how many bytes they take."""
    numbers = 3 * (1 + len(_NUMBERS) + len(found.scores))
    names = sum(map(getsizeof, found.scores))
    return 600 + 300 * numbers + names + sum(each.nbytes + 150 for each in found.values)


def table_of(found: Mapping[str, Version]) -> Any:
    """Return what versions are sorted by, as a table."""
    versions = found.values()
    return pa.table(
        {
            "id": pa.array([*found], pa.string()),
            "first_seen": pa.array([each.first for each in versions], pa.int64()),
            "last_seen": pa.array([each.last for each in versions], pa.int64()),
            "requests": pa.array([each.requests for each in versions], pa.int64()),
            "errors": pa.array([each.errors for each in versions], pa.int64()),
            "cost_usd": pa.array([each.cost for each in versions], pa.decimal128(38, PLACES)),
        }
    )
