"""`spendstream quota`: how much of its month an organization has used, in a terminal."""

import asyncio

import click

from processor.core.clock import format_timestamp
from processor.settings import Settings
from processor.view.arrivals import Arrivals
from processor.wall_clock import now
from server.cli.common import UNICODE, open_log, settings_options
from server.cli.output import Column, Sheet, print_encoded
from server.cli.users import read_view
from server.reads import read_json
from server.reads.answers import QuotaAnswer
from server.reads.read_service import ViewReads
from server.tenancy import directory_log
from server.tenancy.keys import DEFAULT_ORGANIZATION, make_key


@click.command()
@click.option("--org", type=UNICODE, default=DEFAULT_ORGANIZATION, show_default=True, help="Organization to show")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as GET /v1/quota answers")
@settings_options(Settings, "data_dir", "broker")
def quota(org: str, as_json: bool, data_dir: str | None, broker: str | None, config: str | None) -> None:
    """The month of an organization, by arrival: events used, its limit, and the windows of now.

    Read from the data directory, beside a running server or without one.

    \b
    Example:
      spendstream quota --org acme
    """
    with open_log({"data_dir": data_dir, "broker": broker, "config": config}) as log:
        view, directory = read_view(log), directory_log.read_directory(log)
    reads = ViewReads(view, Arrivals(view), directory, "", now)
    answer = asyncio.run(reads.get_quota(make_key("", at=now(), organization=org), None))
    if as_json:
        print_encoded([read_json.encode(read_json.quota(answer))])
    else:
        _print(answer)


def _print(answer: QuotaAnswer) -> None:
    table = Sheet(
        Column("window", "whole"),
        Column("since", "whole"),
        Column("used", "number"),
        Column("limit", "number"),
        Column("remaining", "number"),
        nothing="",
    )
    table.notes.append(
        f"{answer.organization}, {answer.period}: resets {format_timestamp(answer.resets_at)}; this month "
        f"{answer.duplicates:,} duplicates, {answer.conflicts:,} of them conflicts, not charged"
    )
    for kind, window in answer.windows.items():
        remaining = answer.remaining if kind == "month" else None
        limit = "none" if window.limit is None else window.limit
        table.add(kind, format_timestamp(window.start), window.used, limit, remaining)
    table.print()
