"""Row `event-reads-beside`: the questions of `event-reads`, asked of one plain DuckDB table and of SQLite with indexes.

Both get the rows of the same store, read once more from its segments, and are asked in this process, without HTTP. What
they do not do: they take no events in while they answer, know no project, keep no cursor over a frozen set, bound
neither memory nor time, have tags as columns that were chosen before, no unknown fields, and nothing of them is
counted once or adds up to a bill. Sums of money are exact in both: DuckDB adds decimals, SQLite whole picodollars.
"""

import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import duckdb

from processor.event_store.segments_topic import SegmentsTopic
from processor.log.embedded.log import Log
from tests.bench.context import Bench
from tests.bench.results import Figures
from tests.support.server import KEY
from tools import make_segments

REPEATED: Final = 20
DAY: Final = 86_400_000_000
ROWS: Final = 1 << 16
"""That are handed from one to the other at a time."""

COLUMNS: Final = {
    "event_id": "event_id",
    "trace_id": "trace_id",
    "span_id": "span_id",
    "parent_span_id": "parent_span_id",
    "micros": "epoch_us(timestamp)",
    "model": "model",
    "user_id": "user_id",
    "session_id": "session_id",
    "status": "status",
    "kind": "kind",
    "latency_ms": "latency_ms",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cost": "(cost_usd * 1000000000000)::BIGINT",
    "team": "map_extract_value(tags, 'team')",
}
INDEXES: Final = ("event_id", "trace_id", "micros", "user_id, micros")

Ask = Callable[[str, list[Any]], list[Any]]


def event_reads_beside(bench: Bench) -> Figures:
    """Medians of `REPEATED` answers each, in ms, and what making and keeping the tables took."""
    directory = bench.event_store or bench.directory / "events"
    if not directory.exists():
        make_segments.make_store(directory, 1_000_000, key=KEY)
    figures: Figures = {}
    with bench.fresh() as folder:
        table = folder / "table.duckdb"
        with closing(duckdb.connect(str(table))) as plain:
            plain.execute("SET threads = 1")
            figures |= _filled("DuckDB", table, lambda: _fill_duckdb(plain, _segments(directory)))
            figures |= _asked("DuckDB", lambda sql, params: plain.execute(sql, params).fetchall(), _P95)
            other = folder / "table.sqlite"
            with closing(sqlite3.connect(other)) as indexed:
                figures |= _filled("SQLite", other, lambda: _fill_sqlite(indexed, plain))
                figures |= _asked("SQLite", lambda sql, params: indexed.execute(sql, params).fetchall(), _P95_BY_RANK)
    return figures


def _segments(directory: Path) -> list[str]:
    with closing(Log(directory, create=False)) as log:
        live = SegmentsTopic(log, lambda: 0).read_on().live()
    return [str(directory / make_segments.FOLDER / f"{segment.id}.parquet") for segment in live]


def _filled(name: str, path: Path, fill: Callable[[], int]) -> Figures:
    began = time.process_time()
    rows = fill()
    spent = time.process_time() - began
    return {f"{name}, µs of CPU a row to fill": 1e6 * spent / rows, f"{name}, bytes a row": path.stat().st_size / rows}


def _fill_duckdb(plain: duckdb.DuckDBPyConnection, paths: list[str]) -> int:
    listed = ", ".join(f"{sql} AS {name}" for name, sql in COLUMNS.items())
    plain.execute(f"CREATE TABLE events AS SELECT {listed} FROM read_parquet(?)", [paths])
    plain.execute("CHECKPOINT")
    ((rows,),) = plain.execute("SELECT count(*) FROM events").fetchall()
    return int(rows)


def _fill_sqlite(indexed: sqlite3.Connection, plain: duckdb.DuckDBPyConnection) -> int:
    indexed.execute(f"CREATE TABLE events ({', '.join(COLUMNS)})")
    marks = ", ".join("?" * len(COLUMNS))
    with indexed:
        for rows in _batches(plain):
            indexed.executemany(f"INSERT INTO events VALUES ({marks})", rows)
        for number, columns in enumerate(INDEXES):
            indexed.execute(f"CREATE INDEX by_{number} ON events ({columns})")
    indexed.execute("ANALYZE")
    ((rows,),) = indexed.execute("SELECT count(*) FROM events").fetchall()
    return int(rows)


def _batches(plain: duckdb.DuckDBPyConnection) -> Iterator[list[Any]]:
    found = plain.execute("SELECT * FROM events")
    while rows := found.fetchmany(ROWS):
        yield rows


_P95: Final = f"""
    SELECT model, team, micros // {DAY}, sum(cost), count(*), quantile_disc(latency_ms, 0.95) FILTER (latency_ms > 0)
    FROM events WHERE kind = 'call' GROUP BY ALL"""
_P95_BY_RANK: Final = f"""
    SELECT model, team, day, sum(cost), count(*), min(latency_ms) FILTER (WHERE place * 100 >= many * 95) FROM (
        SELECT model, team, micros / {DAY} AS day, cost, latency_ms,
               row_number() OVER (PARTITION BY model, team, micros / {DAY} ORDER BY latency_ms) AS place,
               count(*) OVER (PARTITION BY model, team, micros / {DAY}) AS many
        FROM events WHERE kind = 'call') GROUP BY model, team, day"""
"""SQLite has no quantiles."""


def _asked(name: str, ask: Ask, p95: str) -> Figures:
    ((last,),) = ask("SELECT max(micros) FROM events", [])
    page = f"SELECT * FROM events WHERE kind = 'call' AND micros > {last - DAY} ORDER BY micros DESC LIMIT ?"
    some = ask(page, [200])
    places = {column: place for place, column in enumerate(COLUMNS)}
    questions: dict[str, tuple[int, Callable[[Any], Any]]] = {
        "one event": (REPEATED, lambda row: ask("SELECT * FROM events WHERE event_id = ?", [row[places["event_id"]]])),
        "one trace": (REPEATED, lambda row: ask("SELECT * FROM events WHERE trace_id = ?", [row[places["trace_id"]]])),
        "page of 24 h": (REPEATED, lambda row: ask(page, [50])),
        "page of a user, with total": (REPEATED, lambda row: _page_of_user(ask, row[places["user_id"]])),
        "metrics by model and tag, by day": (3, lambda row: ask(p95, [])),
        "metrics in all": (3, lambda row: ask("SELECT count(*), sum(cost) FROM events WHERE kind = 'call'", [])),
    }
    return {
        f"{name}, {title}, ms": 1e3 * statistics.median(_timed(question, row) for row in some[: 1 + times][1:])
        for title, (times, question) in questions.items()
    }


def _page_of_user(ask: Ask, user: str | None) -> None:
    where = "FROM events WHERE kind = 'call' AND user_id = ?"
    ask(f"SELECT * {where} ORDER BY micros DESC LIMIT 50", [user])
    ask(f"SELECT count(*) {where}", [user])


def _timed(question: Callable[[Any], Any], row: Any) -> float:
    began = time.perf_counter()
    question(row)
    return time.perf_counter() - began
