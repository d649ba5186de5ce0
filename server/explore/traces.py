"""`GET /v1/traces`: summaries of the traces with a matching event, each of all its events."""

from collections.abc import Sequence
from typing import Any, Final

from server.explore import sums
from server.explore.cursor import Walk, walk
from server.explore.engine import Row
from server.explore.questions import Times, TracesQuestion
from server.explore.ranked import (
    CANDIDATES,
    Candidates,
    Ranked,
    RankedBound,
    RankedPlace,
    first_behind,
    first_of,
    page_of,
)
from server.explore.snapshot import EVERYTHING, Relation, Snapshot
from server.explore.summaries import COLUMNS, everything, trace_summaries, whole_traces
from server.explore.trace_totals import SUMS, page_of_traces

VALUES: Final = {
    "start": sums.START,
    "duration_ms": f"{sums.END} - {sums.START}::HUGEINT * {sums.NANOS}",
    "cost_usd": sums.COST,
    "errors": sums.ERROR_COUNT,
}
"""What traces are sorted by, descending."""

FIRST_LOOK: Final = 16_384
"""About how many of the latest rows are looked at first for those that began last."""

SUMMED: Final = 200
"""Traces up to which the events that they are valued by are read with all columns that the answer needs."""

MOST_MATCHING: Final = 2_000_000
"""Traces that are looked for beyond the range of a question."""

_COLUMNS: Final = ("trace_id", *sums.SUM_COLUMNS, "timestamp")


def answer_traces(snapshot: Snapshot, question: TracesQuestion) -> bytes:
    """Return the JSON of a page of traces.

    Raises `Refused`: bad_request for a cursor of another question, query_too_heavy; `Stopped`, `SegmentGone`.
    """
    step = walk(snapshot, question)
    after = step.place_as(RankedPlace)
    traces = _Traces(step, question)
    found = page_of(traces, question.sort == "start", after, question.limit + 1)
    page = found[: question.limit]
    ids = [each.id for each in page]
    summaries = trace_summaries(step.snapshot, question.project, ids, traces.whole_of(ids))
    cursor = step.cursor(page[-1].place) if len(found) > len(page) else None
    return step.answer({"traces": [summaries[each.id] for each in page], "nextCursor": cursor})


class _Traces:
    """How matching traces are found and valued."""

    def __init__(self, step: Walk, question: TracesQuestion) -> None:
        self.first_look: int = FIRST_LOOK
        self._snapshot = step.snapshot
        self._project = question.project
        self._filters = question.filters
        self._times = step.times
        self._sort = question.sort
        self._value = VALUES[question.sort]
        self._matched: Relation
        self._beyond: RankedBound | None
        self._latest: list[Row] | None
        self._whole: tuple[frozenset[str], Relation] | None = None

    def look(self, rows: int | None) -> bool:
        """See `RankedItem`."""
        seen = self._snapshot.latest(self._project, self._filters, self._times, rows)
        times = self._times if seen is None else Times(seen, self._times.end)
        self._matched = self._snapshot.relation(self._project, self._filters, times, columns=("trace_id", "timestamp"))
        self._latest = None
        self._beyond = None if seen is None else RankedBound(seen - 1)
        return seen is None

    def _first_matches(self) -> list[Row]:
        if self._latest is None:
            self._latest = self._snapshot.engine.rows(
                f"SELECT trace_id, {sums.START} AS start FROM ({self._matched.sql}) GROUP BY trace_id "
                "ORDER BY start DESC, trace_id LIMIT ?",
                [*self._matched.params, CANDIDATES + 1],
            )
        return self._latest

    def starts(self) -> Sequence[int]:
        """Return when the traces first match: the latest, `CANDIDATES` + 1 at most."""
        return [start for _, start in self._first_matches()]

    def candidates(self, most: int) -> Candidates:
        """Return those that have matched last."""
        return first_of(self._first_matches(), min(most, CANDIDATES), self._beyond)

    def valued(self, ids: Sequence[str], after: RankedPlace | None, limit: int) -> list[Ranked]:
        """Return the first of some traces."""
        is_page = len(ids) <= SUMMED
        whole = whole_traces(self._snapshot, self._project, ids, COLUMNS if is_page else _COLUMNS)
        self._whole = (frozenset(ids), whole) if is_page else None
        return self._first(f"({whole.sql})", whole.params, after, limit)

    def whole_of(self, ids: Sequence[str]) -> Relation | None:
        """Return all events of these traces, and perhaps those of others, if they were read when they were valued."""
        return self._whole[1] if self._whole is not None and self._whole[0].issuperset(ids) else None

    def all_valued(self, after: RankedPlace | None, limit: int) -> list[Ranked]:
        """Return the first of all that match.

        All rows of the range are read, and of the others those of the traces that match. Where too many match for that,
        everything is.
        """
        if self._sort in SUMS:
            matches = None if self._filters == EVERYTHING else self._matched
            page = page_of_traces(self._snapshot, self._project, self._times, matches, self._sort, after, limit)
            if page is not None:
                return page
        ids = self._snapshot.engine.table(
            f"SELECT DISTINCT trace_id FROM ({self._matched.sql}) LIMIT ?", [*self._matched.params, MOST_MATCHING + 1]
        )
        whole = None
        if len(ids) <= MOST_MATCHING:
            traces = ids["trace_id"].combine_chunks()
            whole = self._snapshot.around(self._project, self._times, "trace_id", traces, _COLUMNS)
        if whole is None:
            whole = everything(self._snapshot, self._project, _COLUMNS)
        source = f"({whole.sql}) AS whole WHERE trace_id IN (SELECT trace_id FROM ({self._matched.sql}))"
        return self._first(source, [*whole.params, *self._matched.params], after, limit)

    def _first(self, source: str, params: Sequence[Any], after: RankedPlace | None, limit: int) -> list[Ranked]:
        sql, place = first_behind(
            f"SELECT trace_id AS id, {self._value} AS value FROM {source} GROUP BY trace_id", after
        )
        rows = self._snapshot.engine.rows(sql, [*params, *place, limit])
        return [Ranked(*row) for row in rows]
