"""`GET /v1/metrics`: measures of the matching events, by group and by interval.

The groups are found first, the best `limit` of them by the measure that they are sorted by. What the others have
together, `other`, is computed from their events, as is the total: a quantile or a count of users cannot be added up.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw

from server.errors import Refused
from server.explore.aggregation import aggregate, aggregate_sets, is_exact
from server.explore.cell_reader import read_cells
from server.explore.cells import CombinedCells
from server.explore.cursor import stamped
from server.explore.engine import Row
from server.explore.measures import Measure, measures, score_column
from server.explore.metric_params import GROUPS
from server.explore.questions import MetricsQuestion
from server.explore.series_slots import MAX_INTERVALS, MAX_POINTS, Slots, slots_of, too_many_points
from server.explore.snapshot import Relation, Snapshot
from server.explore.sums import time_json

MULTI: Final = "tool"
"""An event is in one group of each tool that it has used."""

MAY_BE_EMPTY: Final = frozenset({"prompt_hash", "error_code"})
"""Fields that may be empty texts, which are in the group of the absent ones, as in the filters."""

_TAG: Final = "tag:"
_TOOLS: Final = (
    "nullif(unnest(CASE WHEN len(tools_used) > 0 THEN list_distinct(tools_used) ELSE [NULL::VARCHAR] END), '')"
)
_COLUMNS: Final = (
    *(name for name in GROUPS if name != MULTI),
    *("trace_id", "timestamp", "latency_ms", "ttft_ms", "input_tokens", "output_tokens", "cached_tokens"),
    *("cache_write_tokens", "reasoning_tokens", "cost_usd", "tags", "tools_used", "eval_scores"),
    *("log_partition", "log_offset", "log_index"),
)

MAX_VALUES: Final = 2_000_000
"""Of all series of an answer: points times what is computed for each."""

SAMPLE: Final = 50_000
"""Events that are looked at for how many groups there are."""
FEW_GROUPS: Final = 200
"""Groups among them up to which all groups, their series and the total are computed in one pass over the events."""

Key = tuple[str | None, ...]


class _Statement(NamedTuple):
    sql: str
    params: list[Any]


class _Found(NamedTuple):
    """What the engine has answered."""

    total: Row
    groups: list[Row]
    """Keys and parts, the best first; more than are to be shown where there are."""
    points: list[Row]
    """Keys, start and parts, in order of time."""
    total_points: list[Row]
    """Start and parts of all matching events, in order of time."""
    cells: "_Cells | None" = None
    """What `other` is computed from without reading again."""


class _Cells(NamedTuple):
    """What one pass in numpy has found."""

    rows: CombinedCells
    by_key: dict[Key, list[int]]

    def other(self, shown: Iterable[Key]) -> Row:
        """Return the parts of the events of the groups that are not shown."""
        left = self.by_key.keys() - {*shown}
        return self.rows.row([cell for key in left for cell in self.by_key[key]])


class _Answer:
    """The making of one answer."""

    def __init__(self, snapshot: Snapshot, question: MetricsQuestion) -> None:
        self._snapshot = snapshot
        self._engine = snapshot.engine
        self._question = question
        self._measures, scores = measures(question.measures)
        self._scores = scores
        self.relation: Relation = snapshot.relation(
            question.project, question.filters, question.times, columns=_COLUMNS
        )
        self._keys = [f"key_{number}" for number in range(len(question.group_by))]
        self._parts = list(dict.fromkeys(part for measure in self._measures for part in measure.parts))
        least = snapshot.rows_for_certain(question.project, question.filters, question.times)
        self._is_exact = is_exact(self._engine, self.relation, question.project, self._parts, least)

    @property
    def most_points(self) -> int:
        """Points that an answer may have."""
        return min(MAX_POINTS, MAX_VALUES // len(self._parts))

    # --- what is asked of the engine ---------------------------------------------------------------------------------

    def _base(self, *, grouped: bool) -> _Statement:
        """Return the events with their keys and scores as columns, as `WITH base AS (...)`."""
        columns, params = ["*"], [*self.relation.params]
        for column, field in zip(self._keys, self._question.group_by if grouped else (), strict=grouped):
            sql, values = _key_sql(field)
            columns.append(f"{sql} AS {column}")
            params += values
        for number, score in enumerate(self._scores):
            columns.append(f"map_extract_value(eval_scores, ?) AS {score_column(number)}")
            params.append(score)
        matched = f"WITH matched AS NOT MATERIALIZED ({self.relation.sql}), "
        return _Statement(f"{matched}base AS NOT MATERIALIZED (SELECT {', '.join(columns)} FROM matched)", params)

    def _summed(self, base: _Statement, source: str, params: Iterable[Any], keys: Sequence[str]) -> _Statement:
        """Return the parts of all measures of the events of `source`, by `keys`, as `WITH ..., summed AS (...)`."""
        sql = aggregate("source", keys, self._parts, exact=self._is_exact)
        with_source = f"{base.sql}, source AS NOT MATERIALIZED (SELECT * FROM {source})"
        return _Statement(f"{with_source}, summed AS ({sql})", [*base.params, *params])

    def total(self) -> Row:
        """Return the parts of all matching events; the last one is their number."""
        base = self._base(grouped=False)
        summed = self._summed(base, "base", (), ())
        ((*parts,),) = self._engine.rows(f"{summed.sql} SELECT * FROM summed", summed.params)
        return tuple(parts)

    def groups(self) -> list[Row]:
        """Return keys and parts of the best groups, one more than are to be shown."""
        summed = self._summed(self._base(grouped=True), "base", (), self._keys)
        order = self._sorted_by.order.format(*(f"part_{self._parts.index(part)}" for part in self._sorted_by.parts))
        keys = ", ".join(f"{key} NULLS LAST" for key in self._keys)
        return self._engine.rows(
            f"{summed.sql} SELECT * FROM summed ORDER BY {order} DESC NULLS LAST, {keys} LIMIT ?",
            [*summed.params, self._question.limit + 1],
        )

    def other(self, shown: Sequence[Key], found: _Found) -> Row:
        """Return the parts of the events that are in a group which is not shown; each counts once."""
        if found.cells is not None:
            return found.cells.other(shown)
        base = self._base(grouped=True)
        listed = self._listed(shown)
        source = f"base ANTI JOIN {listed.sql}"
        if MULTI in self._question.group_by:
            source = f"(SELECT DISTINCT ON (log_partition, log_offset, log_index) * FROM {source}) AS events"
        summed = self._summed(base, source, listed.params, ())
        return self._engine.rows(f"{summed.sql} SELECT * FROM summed", summed.params)[0]

    def series(self, shown: Sequence[Key], slots: Slots, *, is_all: bool) -> list[Row]:
        """Return keys, start and parts of all intervals of the groups that are shown, in order of time."""
        base = self._base(grouped=True)
        source, params = f"base JOIN {slots.table} ON {slots.condition}", [*slots.params]
        if not is_all:
            listed = self._listed(shown)
            source, params = f"{source} SEMI JOIN {listed.sql}", [*params, *listed.params]
        summed = self._summed(base, source, params, [*self._keys, "interval_start"])
        return self._engine.rows(
            f"{summed.sql} SELECT * FROM summed ORDER BY interval_start LIMIT ?", [*summed.params, self.most_points + 1]
        )

    def total_series(self, slots: Slots) -> list[Row]:
        """Return start and parts of all intervals of all matching events, in order of time."""
        base = self._base(grouped=False)
        source = f"base JOIN {slots.table} ON {slots.condition}"
        summed = self._summed(base, source, slots.params, ["interval_start"])
        return self._engine.rows(
            f"{summed.sql} SELECT * FROM summed ORDER BY interval_start LIMIT ?", [*summed.params, self.most_points + 1]
        )

    def _listed(self, keys: Sequence[Key]) -> _Statement:
        """Return groups as a table to join the base with, and the condition to do so."""
        columns = ", ".join(f"unnest(?::VARCHAR[]) AS {key}" for key in self._keys)
        same = " AND ".join(f"base.{key} IS NOT DISTINCT FROM listed.{key}" for key in self._keys)
        values = [[key[number] for key in keys] for number in range(len(self._keys))]
        return _Statement(f"(SELECT {columns}) AS listed ON {same}", values)

    def slots(self) -> Slots | None:
        """Return the intervals that the events may lie in; None: no series is asked for, or there are no events."""
        question = self._question
        if question.interval == "none":
            return None
        return slots_of(self._engine, self.relation, question.project, question.times, question.interval, question.tz)

    # --- in one pass -------------------------------------------------------------------------------------------------

    def in_cells(self, slots: Slots | None) -> "_Found | None":
        """Return all that `together` does, in half its time; None: it is not for this question (`cell_reader`)."""
        starts = None if slots is None else slots.starts
        if starts is None and self._question.interval != "none":
            return None
        cells = read_cells(self._snapshot, self._question, self._parts, starts, exact=self._is_exact)
        if cells is None or (starts is not None and len(cells.numbers) > self.most_points):
            return None
        rows = cells.close()
        by_key: dict[Key, list[int]] = {}
        by_interval: dict[int, list[int]] = {}
        for (key, interval), cell in cells.numbers.items():
            by_key.setdefault(key, []).append(cell)
            by_interval.setdefault(interval, []).append(cell)
        total = rows.row([*cells.numbers.values()])
        groups = sorted(((*key, *rows.row(members)) for key, members in by_key.items()), key=self.rank)
        points, total_points = [], []
        if starts is not None:
            ordered = sorted(cells.numbers.items(), key=lambda item: item[0][1])
            points = [(*key, starts[interval], *rows.row([cell])) for (key, interval), cell in ordered]
            total_points = [(starts[each], *rows.row(by_interval[each])) for each in sorted(by_interval)]
        return _Found(total, groups, points, total_points, _Cells(rows, by_key))

    def together(self, slots: Slots | None) -> "_Found | None":
        """Return all that `total`, `groups` and `series` do, of all groups; None: there may be too many.

        Three passes over ten million events, by a model and a tag, take half as long again: it is their keys that cost.
        """
        keys = [*self._keys, *(() if slots is None else ("interval_start",))]
        if not keys or not self._is_exact or not self._has_few_groups():
            return None
        is_multi = MULTI in self._question.group_by  # then the rows of the base are more than the events
        whole = [] if is_multi else [(), *([] if slots is None else [("interval_start",)])]
        sets = list(dict.fromkeys([tuple(keys), tuple(self._keys), *whole]))
        base = self._base(grouped=True)
        source, params = (
            ("base", []) if slots is None else (f"base JOIN {slots.table} ON {slots.condition}", slots.params)
        )
        rows = self._engine.rows(
            f"{base.sql}, source AS NOT MATERIALIZED (SELECT * FROM {source}) "
            f"{aggregate_sets('source', sets, self._parts)} LIMIT ?",
            [*base.params, *params, self.most_points + 1],
        )
        if len(rows) > self.most_points:
            return None
        found = self._sorted_out(rows, len(keys), has_series=slots is not None)
        return found._replace(total_points=self.total_series(slots)) if is_multi and slots is not None else found

    def _has_few_groups(self) -> bool:
        if not self._keys:
            return True
        base, keys = self._base(grouped=True), ", ".join(self._keys)
        ((count,),) = self._engine.rows(
            f"{base.sql} SELECT count(*) FROM (SELECT DISTINCT {keys} FROM (SELECT {keys} FROM base LIMIT ?))",
            [*base.params, SAMPLE],
        )
        return bool(count <= FEW_GROUPS)

    def _sorted_out(self, rows: Iterable[Row], count: int, *, has_series: bool) -> "_Found":
        """Return the rows of the sets of keys apart; the last column of each says of which it is."""
        width = len(self._keys)
        total: Row | None = None
        groups, points, total_points = [], [], []
        for *row, level in rows:
            if level == 2**count - 1:
                total = tuple(row[count:])
            elif has_series and level == 2**count - 2:
                total_points.append(tuple(row[width:]))
            elif has_series and level == 0:
                points.append(tuple(row))
            else:
                groups.append((*row[:width], *row[count:]))
        total = self.total() if total is None else total
        points.sort(key=lambda point: int(point[width]))
        total_points.sort(key=lambda point: int(point[0]))
        if not width:
            return _Found(total, self._only_group(total), total_points, total_points)
        return _Found(total, sorted(groups, key=self.rank), points, total_points)

    def _only_group(self, total: Row) -> list[Row]:
        return [total] if total[-1] else []

    def apart(self, slots: Slots | None) -> "_Found":
        """Return the total, the best groups and their series, each in a pass of its own."""
        total = self.total()
        groups = self.groups() if self._keys else self._only_group(total)
        shown = [row[: len(self._keys)] for row in groups[: self._question.limit]]
        is_all = len(groups) == len(shown)
        if slots is None or not shown:
            return _Found(total, groups, [], [])
        points = self.series(shown, slots, is_all=is_all)
        return _Found(total, groups, points, self.total_series(slots) if self._keys else points)

    # --- what is made of it ------------------------------------------------------------------------------------------

    @property
    def _sorted_by(self) -> Measure:
        wanted = self._question.sort or self._question.measures[0]
        return next(measure for measure in self._measures if measure.name == wanted)

    def _cells(self, measure: Measure, parts: Sequence[Any]) -> list[Any]:
        return [parts[self._parts.index(part)] for part in measure.parts]

    def values(self, parts: Sequence[Any]) -> dict[str, Any]:
        """Return the measures of some events."""
        return {measure.name: measure.value(self._cells(measure, parts)) for measure in self._measures}

    def rank(self, row: Row) -> tuple[Any, ...]:
        """Return what groups are sorted by: the exact value, descending, then the key; absent ones come last."""
        width = len(self._keys)
        found = self._sorted_by.rank(self._cells(self._sorted_by, row[width:]))
        return found is None, -(found or 0), [(part is None, part or "") for part in row[:width]]

    def group(self, row: Row, series: Sequence[Row]) -> Raw:
        """Return the JSON of one group: many thousand points take less room as bytes."""
        width = len(self._keys)
        found = {
            "key": dict(zip(self._question.group_by, row[:width], strict=True)),
            "values": self.values(row[width:]),
            "series": self._series([point[width:] for point in series]),
        }
        return Raw(msgspec.json.encode(found))

    def total_json(self, found: _Found) -> dict[str, Any]:
        """Return the members of the total; with a series where one is asked for and has not too many points."""
        values = self.values(found.total)
        if self._question.interval == "none" or len(found.total_points) > self.most_points:
            return values
        return {**values, "series": self._series(found.total_points)}

    def _series(self, points: Iterable[Row]) -> list[dict[str, Any]]:
        return [{"start": time_json(start), **self.values(parts)} for start, *parts in points]


def answer_metrics(snapshot: Snapshot, question: MetricsQuestion) -> bytes:
    """Return the JSON of the answer.

    Raises `Refused`: range_too_wide for too many intervals, query_too_heavy; `Stopped`, `SegmentGone`.
    """
    answer, width = _Answer(snapshot, question), len(question.group_by)
    slots = answer.slots()
    found = answer.in_cells(slots) or answer.together(slots) or answer.apart(slots)
    shown = sorted(found.groups[: question.limit], key=answer.rank)
    has_more = len(found.groups) > len(shown)
    keys = [row[:width] for row in shown]
    series: dict[Key, list[Row]] = {key: [] for key in keys}
    for point in found.points:
        if point[:width] in series:
            series[point[:width]].append(point)
    if sum(map(len, series.values())) > MAX_POINTS:
        raise too_many_points(question.interval, f"{MAX_POINTS:,} points in all")
    if sum(map(len, series.values())) > answer.most_points:
        raise Refused("query_too_heavy", "The series have too many values; ask for fewer measures or groups at a time")
    if any(len(each) > MAX_INTERVALS for each in series.values()):
        raise too_many_points(question.interval, f"{MAX_INTERVALS:,} intervals of a group")
    return stamped(
        snapshot,
        {
            "groups": [answer.group(row, series.pop(row[:width])) for row in shown],
            "other": answer.values(answer.other(keys, found)) if has_more else None,
            "total": answer.total_json(found),
            "multi": [field for field in question.group_by if field == MULTI],
        },
    )


def _key_sql(field: str) -> tuple[str, list[str]]:
    """Return the expression of a key, and its parameters."""
    if field.startswith(_TAG):
        return "nullif(map_extract_value(tags, ?), '')", [field.removeprefix(_TAG)]
    if field == MULTI:
        return _TOOLS, []
    if field not in GROUPS:
        raise Refused("bad_request", "group_by names no field of an event")
    return f"nullif({field}, '')" if field in MAY_BE_EMPTY else field, []
