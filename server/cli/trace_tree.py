"""`spendstream trace`: one trace as a tree."""

import json
import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import click

from processor.core.clock import parse_timestamp
from server.cli.charts import time_line
from server.cli.common import UNICODE
from server.cli.events import complete, number, with_code
from server.cli.explore_options import RunningServer, csv_option, one_form, server_options
from server.cli.grouped_help import Command
from server.cli.output import print_encoded
from server.cli.sheet import Cell, Column, Sheet

WIDTH: Final = 24
"""Characters of the time line."""
DEEPEST: Final = 24
"""Depth up to which lines are drawn; below it the depth is a number."""

Span = dict[str, Any]


@click.command(cls=Command)
@click.argument("trace_id", type=UNICODE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as GET /v1/traces/{trace_id} answers")
@csv_option
@server_options
def trace(trace_id: str, as_json: bool, as_csv: bool, **flags: Any) -> None:
    """Show one trace as a tree.

    Its steps have a time line, durations, tokens, costs and errors. In a pipe and as CSV they have their depth instead
    of lines, and their span. Asks the server that --url names, or the one that runs on the data directory.

    \b
    Examples:
      spendstream trace trace-abc
      spendstream trace trace-abc --json
      spendstream trace trace-abc --csv > trace.csv
    """
    one_form(as_json=as_json, as_csv=as_csv)
    extra = [] if as_json else [("extra", "none")]
    body = RunningServer(flags).ask("/v1/traces/", [("trace_id", trace_id), *extra])
    if as_json:
        print_encoded([body])
    else:
        table = _table(json.loads(body, parse_float=Decimal), is_terminal=sys.stdout.isatty() and not as_csv)
        table.print_csv() if as_csv else table.print()


def _table(found: dict[str, Any], *, is_terminal: bool) -> Sheet:
    summary, spans = found["trace"], found["spans"]
    columns = (Column("step"), Column("time", "whole")) if is_terminal else _plain_columns()
    counts = (Column(title, "number") for title in ("ms", "tokens", "cost USD"))
    table = Sheet(*columns, *counts, Column("status"), *(() if is_terminal else (Column("span"),)), nothing="")
    drawn = _Drawing(summary, spans) if is_terminal else None
    for place, span in enumerate(spans):
        first = drawn.cells(place) if drawn is not None else _plain_cells(span)
        last = () if is_terminal else (span["span_id"],)
        table.add(*first, number(span.get("latency_ms")), _tokens(span), number(span["cost_usd"]), _status(span), *last)
    table.notes += _said(summary)
    if found["truncated"]:
        table.notes.append(f"{len(spans):,} of {found['total']:,} steps are shown")
    table.notes.append(complete(found))
    return table


def _plain_columns() -> tuple[Column, ...]:
    return Column("depth", "number"), Column("step"), Column("start", "whole")


def _plain_cells(span: Span) -> tuple[Cell, ...]:
    return span["depth"], _title(span), span["timestamp"]


def _title(span: Span) -> str:
    model, name = span.get("model"), span.get("name")
    if span["kind"] == "span":
        return str(name or span["span_id"])
    return f"{name} ({model})" if name and name != model else str(model)


def _tokens(span: Span) -> Cell:
    if "input_tokens" not in span:
        return None
    return f"{span['input_tokens']:,} + {span.get('output_tokens', 0):,}"


def _status(span: Span) -> str:
    marks = [with_code(span)] + [mark for mark in ("orphan", "cycle", "nested_model_call") if span.get(mark)]
    message = span.get("error_message")
    return ", ".join(marks) + (f": {message}" if message else "")


def _said(summary: dict[str, Any]) -> tuple[str, str]:
    """Return the trace in two lines."""
    counts = (("step", "spans"), ("call", "calls"), ("error", "errors"))
    numbers = (f"{summary[key]:,} {word}{'' if summary[key] == 1 else 's'}" for word, key in counts)
    missing = "" if summary["complete"] else "; its root has not arrived"
    parts = [f"{summary['input_tokens']:,} + {summary['output_tokens']:,} tokens", f"{number(summary['cost_usd'])} USD"]
    names = (("user", "user_id"), ("session", "session_id"), ("environment", "environment"))
    parts += [f"{word} {summary[key]}" for word, key in names if summary[key] is not None]
    lasted = number(summary["duration_ms"])
    shown = f"{lasted:,}" if isinstance(lasted, int) else lasted
    return f"{', '.join(numbers)}; {shown} ms from {summary['start']}{missing}", ", ".join(parts)


class _Drawing:
    """The first two columns of a terminal: the lines of the tree, and the time line."""

    def __init__(self, summary: dict[str, Any], spans: Sequence[Span]) -> None:
        self._spans = spans
        self._ascii = (sys.stdout.encoding or "").lower().replace("-", "").replace("_", "") != "utf8"
        self._start = parse_timestamp(summary["start"])
        self._length = float(summary["duration_ms"])
        self._is_last = _last_children(spans)
        self._open: list[bool] = []
        """Whether a line goes on below, a depth each, on the way to the current step."""

    def cells(self, place: int) -> tuple[Cell, ...]:
        """Return the cells of a step; call it once each, in order."""
        span = self._spans[place]
        start = (parse_timestamp(span["timestamp"]) - self._start) / 1000
        end = start + float(span.get("latency_ms") or 0)
        line = time_line(start, end, self._length, WIDTH, ascii_only=self._ascii)
        return self._lines(span["depth"], self._is_last[place]) + _title(span), line

    def _lines(self, depth: int, is_last: bool) -> str:
        del self._open[max(depth - 1, 0) :]
        down, branch, corner = ("|  ", "|- ", "`- ") if self._ascii else ("│  ", "├─ ", "└─ ")
        if depth > DEEPEST:
            return f"{depth} {corner if is_last else branch}"
        before = "".join(down if goes_on else "   " for goes_on in self._open)
        if depth:
            self._open.append(not is_last)
            before += corner if is_last else branch
        return before


def _last_children(spans: Sequence[Span]) -> list[bool]:
    """Return of each step whether it is the last child of its parent."""
    found = [False] * len(spans)
    seen: set[int | None] = set()
    for place in range(len(spans) - 1, -1, -1):
        parent = spans[place]["parent"]
        found[place] = parent not in seen
        seen.add(parent)
    return found
