"""`spendstream users`: the cost table in a terminal."""

import asyncio

import click

from processor.core.clock import format_timestamp
from processor.core.money import format_cost
from processor.core.tables import row_block
from processor.log.port import LogWriter
from processor.log.records import TopicPartition
from processor.log.topics import ROWS
from processor.settings import Settings
from processor.view.arrivals import Arrivals
from processor.view.view import View
from processor.wall_clock import now
from server.cli.common import UNICODE, fail, open_log, settings_options
from server.cli.output import Cell, Column, Sheet, print_encoded
from server.errors import Refused
from server.reads import read_json
from server.reads.answers import Totals, UserPage
from server.reads.read_service import ViewReads
from server.tenancy.directory import Directory
from server.tenancy.keys import DEFAULT_PROJECT, make_key

BATCH = 5000


@click.command()
@click.option("--project", type=UNICODE, default=DEFAULT_PROJECT, show_default=True, help="Project to show")
@click.option("--start", metavar="TIME", help="First UTC day, like 2026-11-01")
@click.option("--end", metavar="TIME", help="UTC day after the last one")
@click.option("--model", type=UNICODE, help="Only this model")
@click.option("--environment", type=UNICODE, help="Only this environment")
@click.option("--sort", help="cost_usd (default), requests, input_tokens, output_tokens or last_seen")
@click.option("--limit", metavar="N", help="Users to show, at most 1000; default 50")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as GET /v1/users answers")
@settings_options(Settings, "data_dir", "broker")
def users(
    project: str, as_json: bool, data_dir: str | None, broker: str | None, config: str | None, **filters: str | None
) -> None:
    """The most expensive users of a project, read from the data directory, beside a running server or without one."""
    with open_log({"data_dir": data_dir, "broker": broker, "config": config}) as log:
        view = read_view(log)
    params = {name: value for name, value in filters.items() if value is not None}
    try:
        page = asyncio.run(_query(view, project, params))
    except Refused as refused:
        fail(refused.message)
    if as_json:
        print_encoded([read_json.encode(read_json.user_page(page))])
    else:
        _print(page)


def read_view(log: LogWriter) -> View:
    """All tables of a log, as they are now."""
    view = View(row_block.seed_of(log.salt))
    for number in range(log.partitions):
        tp = TopicPartition(ROWS, number)
        position = 0
        while records := log.read(tp, position, BATCH):
            view.apply(number, [(record.key or b"", record.value) for record in records])
            position = records[-1].offset + 1
    view.mark_current(now())
    return view


async def _query(view: View, project: str, params: dict[str, str]) -> UserPage:
    key = make_key("", at=now(), project=project)
    return await ViewReads(view, Arrivals(view), Directory(), "", now).list_users(key, params, None)


def _print(page: UserPage) -> None:
    table = user_sheet()
    for row in page.users:
        seen = "" if row.last_seen is None else format_timestamp(row.last_seen)
        table.add(row.user_id, *_cells(row.totals), seen)
    table.set_sums(f"{page.users_total:,} users", *_cells(page.total), "")
    if len(page.users) < page.users_total:
        table.notes.append(f"{len(page.users):,} of {page.users_total:,} users are shown: --limit shows more")
    table.print()


def user_sheet() -> Sheet:
    """An empty table of users, as `users` and `tail` show them."""
    counts = (Column(title, "number") for title in ("requests", "errors", "input", "output", "cached", "cost USD"))
    return Sheet(Column("user"), *counts, Column("last seen", "whole"), nothing="(none)")


def _cells(totals: Totals) -> list[Cell]:
    counts = (totals.requests, totals.errors, totals.input_tokens, totals.output_tokens, totals.cached_tokens)
    return [*counts, format_cost(totals.cost)]
