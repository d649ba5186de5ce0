"""`spendstream prices audit`: what was sent against what the price lists say, and what is unpriced."""

from typing import Any

import click
import msgspec

from server.cli.explore_options import RunningServer, given, server_and_settings
from server.cli.grouped_help import Command
from server.cli.output import print_encoded
from server.cli.price_options import described, pricer_of
from server.cli.price_sums import SUMS, PriceSums
from server.cli.sheet import Column, Sheet
from server.settings import ServerSettings


@click.command(cls=Command)
@click.option("--start", metavar="TIME", required=True, help="From this RFC 3339 time or date on")
@click.option("--end", metavar="TIME", help="Before this RFC 3339 time or date  [default: now]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@server_and_settings(ServerSettings, "prices")
def audit(as_json: bool, **flags: Any) -> None:
    """Compare the costs that were sent with the price lists, by model, and show what is unpriced.

    `sent` are the calls that came with a cost. `comparable` are those of them that the lists can price: what was sent
    for them, what they cost `by_list`, and how much more was sent (`over`). `listed` are the calls that a list priced
    when they arrived, `unpriced` those that none could.

    Reads all calls of the range from the server that --url names, or the one that runs on the data directory. The lists
    are those of the settings of this command.

    \b
    Example:
      spendstream prices audit --start 2026-11-01 --end 2026-12-01
    """
    params = [("format", "ndjson"), ("kind", "call"), *given(flags, ("start", "end"))]
    found = PriceSums(pricer_of({name: flags[name] for name in ("prices", "config")}))
    RunningServer(flags).read_lines("/v1/export", params, found.take)
    rows, total = found.rows(), found.total()
    if as_json:
        print_encoded([msgspec.json.encode({"models": [row.encoded() for row in rows], "total": total.encoded()})])
        return
    table = Sheet(Column("provider"), Column("model"), *(Column(name, "number") for name in SUMS))
    for row in rows:
        table.add(row.provider, row.model, *row.cells())
    table.set_sums("total", "", *total.cells())
    table.notes += [f"by {described(prices)}" for prices in found.pricer.lists]
    table.print()
