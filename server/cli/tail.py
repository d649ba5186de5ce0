"""`spendstream tail`: follow the users of a running server."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from decimal import Decimal, localcontext
from typing import Final

import click
import msgspec
from msgspec import Struct
from rich.live import Live

from processor.view.query import SORTS
from server.cli.common import UNICODE, fail
from server.cli.grouped_help import Command
from server.cli.output import print_encoded
from server.cli.remote import StreamMessage, Unanswered, key_option, url_option
from server.cli.sheet import Sheet, terminal
from server.cli.users import ShownUser, user_sheet
from server.errors import Refused


class ReachedBudget(Struct):
    """A reached budget, as far as it is shown."""

    user_id: str | None
    model: str | None
    window: str
    usd: Decimal
    threshold: int


_row = msgspec.json.Decoder(ShownUser).decode
_reached = msgspec.json.Decoder(ReachedBudget).decode


@click.command(cls=Command)
@url_option("--url", "The server  [default: http:// and SPENDSTREAM_HTTP_BIND]")
@key_option()
@click.option(
    "--user", "users", type=UNICODE, metavar="ID", multiple=True, help="Only this user; may be given several times"
)
@click.option("--sort", type=click.Choice(list(SORTS)), default="cost_usd", show_default=True, help="Order")
@click.option("--limit", metavar="N", type=click.IntRange(1), default=20, show_default=True, help="Users in the table")
@click.option("--events", metavar="N", type=click.IntRange(1), help="Stop after N events of the stream")
@click.option("--json", "as_json", is_flag=True, help="Print NDJSON, a row a line, as without a terminal")
def tail(url: str, key: str, users: tuple[str, ...], sort: str, limit: int, events: int | None, as_json: bool) -> None:
    """Follow the users of a running server as they change.

    Shows the most expensive users of the key's project: at first all, then those that change. When the connection is
    lost, it reconnects and resumes where it was. With --json each line has `event` (snapshot or update), `asOf` and the
    `user`'s row; for a reached budget `event` is budget, and `budget` has its details.

    \b
    Examples:
      SPENDSTREAM_KEY=lqt_... spendstream tail
      spendstream tail --user alice --user bob --json | jq .user.cost_usd
    """
    from server.cli.feed_client import follow

    messages = follow(url.rstrip("/"), key, users)
    try:
        if as_json or not sys.stdout.isatty():
            asyncio.run(_consume(messages, events, print_rows))
        else:
            shown = Shown(sort, limit)
            with Live(shown.table(), console=terminal(), refresh_per_second=4) as live:

                def show(kind: str, message: StreamMessage) -> None:
                    shown.take(kind, message)
                    live.update(shown.table())

                asyncio.run(_consume(messages, events, show))
    except (Refused, Unanswered) as error:
        fail(str(error))
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(0)


async def _consume(
    messages: AsyncIterator[tuple[str, StreamMessage]], count: int | None, take: Callable[[str, StreamMessage], None]
) -> None:
    async for kind, message in messages:
        take(kind, message)
        if count is not None:
            count -= 1
            if not count:
                return


def print_rows(kind: str, message: StreamMessage) -> None:
    """Yield one line for each row, or for a budget; numbers keep all their digits."""
    if message.budget is not None:
        print_encoded([b'{"event":"budget","budget":%b}' % bytes(message.budget)])
    head = msgspec.json.encode({"event": kind, "asOf": message.as_of})[:-1]
    print_encoded(head + b',"user":' + bytes(row) + b"}" for row in message.users)


class Shown:
    """The rows received, and a table of the first of them."""

    def __init__(self, sort: str, limit: int) -> None:
        self._sort = sort
        self._limit = limit
        self._as_of = ""
        self._notice = ""
        self.rows: dict[str | None, ShownUser] = {}

    def take(self, kind: str, message: StreamMessage) -> None:
        """Apply an event."""
        if message.budget is not None:
            reached = _reached(message.budget)
            who = ", ".join(filter(None, (reached.user_id, reached.model))) or "the project"
            self._notice = f"budget of {who}: {reached.threshold} % of {reached.usd:f} USD a {reached.window} is spent"
            return
        if kind == "snapshot":
            self.rows.clear()
        self._as_of = message.as_of
        for raw in message.users:
            row = _row(raw)
            if row.requests:
                self.rows[row.user_id] = row
            else:
                self.rows.pop(row.user_id, None)

    def first(self) -> list[ShownUser]:
        """Return the rows to show."""
        by_name = sorted(self.rows.values(), key=lambda row: row.user_id or "")
        return sorted(by_name, key=lambda row: getattr(row, self._sort) or "", reverse=True)[: self._limit]

    def table(self) -> Sheet:
        """Return the table for a terminal."""
        rows = self.rows.values()
        with localcontext(prec=100):  # the usual 28 digits would round
            cost = sum((row.cost_usd for row in rows), Decimal())
        table = user_sheet()
        for row in self.first():
            table.add(row.user_id, *row.cells(), row.last_seen or "")
        sums = (sum(getattr(row, name) for row in rows) for name in _COUNTS)
        table.set_sums(f"{len(rows):,} users", *sums, f"{cost:f}", "")
        table.notes.append(f"as of {self._as_of}" if self._as_of else "waiting ...")
        table.notes += [self._notice] if self._notice else []
        return table


_COUNTS: Final = ("requests", "errors", "input_tokens", "output_tokens", "cached_tokens")
