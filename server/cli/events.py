"""`spendstream events`: single events of a project."""

import json
from decimal import Decimal
from typing import Any, Final

import click

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
from server.explore.question_params import MAX_LIMIT, ORDERS

MOST: Final = 10_000
"""Events that one command shows."""
SHOWN: Final = 20
"""Events that it shows if it is not told how many."""


@click.command(cls=Command)
@click.option("--order", type=click.Choice(ORDERS), help="By event time  [default: desc]")
@click.option("--limit", type=click.IntRange(1, MOST), default=SHOWN, show_default=True, help="Events to show")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a page a line, as GET /v1/events answers")
@csv_option
@filter_options
@server_options
def events(limit: int, as_json: bool, as_csv: bool, **flags: Any) -> None:
    """List the events of a project, the latest first.

    Without a range those of the last 24 hours. Asks the server that --url names, or the one that runs on the data
    directory.

    \b
    Examples:
      spendstream events --model gpt-4o --status error
      spendstream events --user-id u1 --min-cost-usd 0.1 --start 2026-11-01 --end 2026-12-01 --limit 500
      spendstream events --tag team:search --not environment=staging --json
      spendstream events --session-id chat-8123 --limit 10000 --csv > session.csv
    """
    one_form(as_json=as_json, as_csv=as_csv)
    params = [*filters_of(flags), *given(flags, ["order"])]
    pages = _pages(RunningServer(flags), params, limit)
    if as_json:
        print_encoded(pages)
    else:
        table = _table([json.loads(page, parse_float=Decimal) for page in pages])
        table.print_csv() if as_csv else table.print()


def _pages(server: RunningServer, params: list[tuple[str, str]], limit: int) -> list[bytes]:
    """Return pages with up to `limit` events together."""
    pages: list[bytes] = []
    cursor: list[tuple[str, str]] = []
    while limit > 0:
        page = server.ask("/v1/events", [*params, ("limit", str(min(limit, MAX_LIMIT))), *cursor])
        pages.append(page)
        found = json.loads(page)
        limit -= len(found["events"])
        if found["nextCursor"] is None or not found["events"]:
            break
        cursor = [("cursor", found["nextCursor"])]
    return pages


def _table(pages: list[dict[str, Any]]) -> Sheet:
    table = Sheet(
        Column("time", "whole"),
        Column("model"),
        Column("status"),
        Column("ms", "number"),
        Column("input", "number"),
        Column("output", "number"),
        Column("cost USD", "number"),
        Column("user"),
        Column("trace"),
        Column("event", "whole"),
        nothing="",
    )
    found = [event for page in pages for event in page["events"]]
    for event in found:
        table.add(*_row(event))
    last = pages[-1]
    if last["nextCursor"] is not None:
        of = "" if last["total"] is None else f" of {last['total']:,}"
        table.notes.append(f"{len(found):,}{of} events are shown: --limit shows more")
    if not found:
        table.notes.append("no event matches; without --start and --end only the last 24 hours are looked at")
    table.notes.append(complete(last))
    return table


def _row(event: dict[str, Any]) -> list[Cell]:
    return [
        event["timestamp"],
        event["model"] if event["kind"] == "call" else event.get("name"),
        with_code(event),
        number(event.get("latency_ms")),
        event.get("input_tokens"),
        event.get("output_tokens"),
        number(event["cost_usd"]),
        event.get("user_id"),
        event["trace_id"],
        event["event_id"],
    ]


def with_code(event: dict[str, Any]) -> str:
    """Return the status of an event, and the code of its error."""
    code = event.get("error_code")
    return event["status"] if not code else f"{event['status']}: {code}"


def number(value: Any) -> Cell:
    """Return a number with all of its digits, and no more."""
    if value is None or isinstance(value, int):
        return value
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return int(text) if "." not in text else text


def complete(answer: dict[str, Any]) -> str:
    """Return up to when an answer is complete."""
    return f"the event store has what arrived until {answer['asOf']}"
