"""`spendstream metrics`: sums, averages and quantiles of events by group."""

import json
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, Final

import click

from server.cli.charts import bar, sparkline
from server.cli.common import UNICODE
from server.cli.events import complete, number
from server.cli.explore_options import (
    RunningServer,
    csv_option,
    filter_options,
    filters_of,
    given,
    one_form,
    server_options,
)
from server.cli.grouped_help import Command
from server.cli.output import print_encoded
from server.cli.sheet import Cell, Column, Sheet
from server.explore.metric_params import DEFAULT_MEASURES, GROUPS, INTERVALS
from server.explore.question_params import DEFAULT_GROUPS, MAX_GROUPS

WIDTH: Final = 30
"""Characters of a bar or a sparkline."""

Group = dict[str, Any]


@click.command(cls=Command)
@click.option(
    "--group-by", multiple=True, type=UNICODE, help=f"Up to three of {', '.join(GROUPS)}, tag:KEY; repeat the flag"
)
@click.option(
    "--measure",
    "measures",
    multiple=True,
    type=UNICODE,
    help="What to show, like latency_ms:p95 or score:helpful:avg; repeat the flag  "
    f"[default: {', '.join(DEFAULT_MEASURES)}]",
)
@click.option("--interval", type=click.Choice(INTERVALS), help="Show how the first measure changes")
@click.option("--tz", type=UNICODE, help="IANA name of the time zone that days begin in  [default: UTC]")
@click.option("--sort", type=UNICODE, help="One of the measures, descending  [default: the first]")
@click.option("--limit", type=click.IntRange(1, MAX_GROUPS), help=f"Groups to show  [default: {DEFAULT_GROUPS}]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as GET /v1/metrics answers")
@csv_option
@filter_options
@server_options
def metrics(group_by: tuple[str, ...], measures: tuple[str, ...], as_json: bool, as_csv: bool, **flags: Any) -> None:
    """Show sums, averages and quantiles of events.

    Without a range those of the last 24 hours. A terminal shows a bar of the first measure, or with --interval its
    course; a pipe gets a line a group, or with --interval a line a group and interval; CSV has the total as well. Asks
    the server that --url names, or the one that runs on the data directory.

    \b
    Examples:
      spendstream metrics --group-by model --measure cost_usd --measure latency_ms:p95
      spendstream metrics --group-by tag:team --interval day --start 2026-11-01 --end 2026-12-01
      spendstream metrics --group-by user_id --start 2026-11-01 --limit 1000 --csv > users.csv
    """
    one_form(as_json=as_json, as_csv=as_csv)
    params = [("group_by", name) for name in group_by] + [("measures", name) for name in measures]
    interval = flags["interval"]
    params += [*filters_of(flags), *given(flags, ("interval", "tz", "sort", "limit"))]
    body = RunningServer(flags).ask("/v1/metrics", params)
    if as_json:
        print_encoded([body])
        return
    table = _Table(json.loads(body, parse_float=Decimal), measures or DEFAULT_MEASURES)
    has_series, is_terminal = interval not in {None, "none"}, sys.stdout.isatty() and not as_csv
    made = table.over_time() if has_series and not is_terminal else table.by_group(has_series, is_terminal)
    made.print_csv() if as_csv else made.print()


class _Table:
    """An answer as a table: a row a group, or a row a group and interval."""

    def __init__(self, found: dict[str, Any], measures: Sequence[str]) -> None:
        self._found, self._measures = found, measures
        self._groups: list[Group] = found["groups"]
        self._names = list(self._groups[0]["key"]) if self._groups else []
        self._keys = [Column(name) for name in self._names] or [Column("group")]
        self._numbers = [Column(name, "number") for name in measures]

    def over_time(self) -> Sheet:
        """Return a row for each interval of each group."""
        table = Sheet(*self._keys, Column("start", "whole"), *self._numbers)
        for group in self._groups:
            for point in group["series"]:
                cells = (number(point.get(name)) for name in self._measures)
                table.add(*_key(group, self._names), point["start"], *cells)
        return self._noted(table)

    def by_group(self, has_series: bool, has_charts: bool) -> Sheet:
        """Return a row for each group, the others and the total, with charts where they are wanted."""
        title = f"{self._measures[0]} over time" if has_series else self._measures[0]
        chart = [Column(title, "whole")] if has_charts else []
        table = Sheet(*self._keys, *self._numbers, *chart)
        charts = _charts(self._groups, self._measures[0], has_series)
        for group, drawn in zip(self._groups, charts, strict=True):
            cells = _cells(group["values"], self._measures)
            table.add(*_key(group, self._names), *cells, *([drawn] if chart else []))
        for title, values in (("(other)", self._found["other"]), ("total", self._found["total"])):
            if values is not None:
                row = [title, *[""] * (len(self._keys) - 1), *_cells(values, self._measures), *[""] * len(chart)]
                table.set_sums(*row) if title == "total" else table.add(*row)
        return self._noted(table)

    def _noted(self, table: Sheet) -> Sheet:
        if self._found["multi"]:
            several = ", ".join(self._found["multi"])
            table.notes.append(f"an event is in several groups of {several}: they add up to more than total")
        table.notes.append(complete(self._found))
        return table


def _key(group: Group, names: Sequence[str]) -> list[Cell]:
    return [group["key"][name] for name in names] or ["all"]


def _cells(values: dict[str, Any], measures: Sequence[str]) -> list[Cell]:
    cells = (values[name] for name in measures)
    return [cell if isinstance(cell, str) else "" if cell is None else number(cell) for cell in cells]


def _charts(groups: Sequence[Group], measure: str, has_series: bool) -> Iterator[str]:
    """Yield a bar of each group's measure, or its course over all intervals that have events."""
    is_ascii = (sys.stdout.encoding or "").lower().replace("-", "").replace("_", "") != "utf8"
    values = [_float(group["values"].get(measure)) for group in groups]
    most = max((value for value in values if value is not None), default=0.0)
    starts = sorted({point["start"] for group in groups for point in group["series"]})
    for group, value in zip(groups, values, strict=True):
        if has_series:
            course = {point["start"]: _float(point.get(measure)) for point in group["series"]}
            yield sparkline([course.get(start) for start in starts], WIDTH, ascii_only=is_ascii)
        else:
            yield bar(value or 0.0, most, WIDTH, ascii_only=is_ascii)


def _float(value: Any) -> float | None:
    return None if value is None or isinstance(value, str) else float(value)
