"""`spendstream users`: the cost table of a project's users."""

import asyncio
from decimal import Decimal
from typing import Any

import click
import msgspec
from msgspec import Struct

from processor.view.query import DEFAULT_SORT, SORTS
from processor.wall_clock import now
from server.cli.answer_source import answer, source_options
from server.cli.common import UNICODE, fail, open_log
from server.cli.grouped_help import Command
from server.cli.output import print_encoded
from server.cli.remote import Question
from server.cli.sheet import Cell, Column, Sheet
from server.errors import Refused
from server.reads import read_json
from server.reads.params import DEFAULT_LIMIT, MAX_LIMIT
from server.tenancy.keys import DEFAULT_PROJECT, make_key


class ShownSums(Struct):
    """Sums over events, as far as they are shown."""

    requests: int
    errors: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_usd: Decimal

    def cells(self) -> list[Cell]:
        """Return the cells of a table, the cost with all its digits."""
        counts = (self.requests, self.errors, self.input_tokens, self.output_tokens, self.cached_tokens)
        return [*counts, f"{self.cost_usd:f}"]


class ShownUser(ShownSums):
    """A user's row, as far as it is shown."""

    user_id: str | None
    last_seen: str | None


class Total(ShownSums):
    """The sums over all users, as far as they are shown."""

    users: int


class Page(Struct):
    """The answer of `GET /v1/users`, as far as it is shown."""

    users: list[ShownUser]
    total: Total


@click.command(cls=Command)
@click.option(
    "--project",
    type=UNICODE,
    help=f"Project to show  [default: the key's; from the data directory {DEFAULT_PROJECT!r}]",
)
@click.option("--start", metavar="DATE", help="First UTC day, like 2026-11-01")
@click.option("--end", metavar="DATE", help="UTC day after the last one")
@click.option("--model", type=UNICODE, help="Only this model")
@click.option("--environment", type=UNICODE, help="Only this environment")
@click.option("--sort", type=click.Choice(list(SORTS)), help=f"Order, descending  [default: {DEFAULT_SORT}]")
@click.option("--limit", type=click.IntRange(1, MAX_LIMIT), help=f"Users to show  [default: {DEFAULT_LIMIT}]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as GET /v1/users answers")
@source_options
def users(as_json: bool, project: str | None, **given: Any) -> None:
    """List the users of a project, the most expensive first.

    Asks the server that --url names. Without it, asks the server that runs on the data directory; if there is none, or
    it does not answer this key, reads the data directory itself, and says so.

    \b
    Examples:
      SPENDSTREAM_KEY=lqt_... spendstream users --url http://127.0.0.1:8080
      spendstream users --start 2026-11-01 --sort requests --limit 10
    """
    names = ("start", "end", "model", "environment", "sort", "limit")
    params = {name: str(value) for name in names if (value := given.pop(name)) is not None}
    question = Question("/v1/users", params if project is None else {**params, "projectId": project})
    where = project or DEFAULT_PROJECT
    page = answer(given, question, lambda flags: _read(flags, where, params), f"project {where}")
    print_encoded([page]) if as_json else _print(msgspec.json.decode(page, type=Page))


def _read(flags: dict[str, Any], project: str, params: dict[str, str]) -> bytes:
    from server.cli.log_tables import reads_of

    with open_log(flags) as log:
        reads = reads_of(log)
    try:
        page = asyncio.run(reads.list_users(make_key("", at=now(), project=project), params, None))
    except Refused as refused:
        fail(refused.message)
    return read_json.encode(read_json.user_page(page))


def _print(page: Page) -> None:
    table = user_sheet()
    for row in page.users:
        table.add(row.user_id, *row.cells(), row.last_seen or "")
    table.set_sums(f"{page.total.users:,} users", *page.total.cells(), "")
    if len(page.users) < page.total.users:
        table.notes.append(f"{len(page.users):,} of {page.total.users:,} users are shown: --limit shows more")
    table.print()


def user_sheet() -> Sheet:
    """Return an empty table of users, as `users` and `tail` show them."""
    counts = (Column(title, "number") for title in ("requests", "errors", "input", "output", "cached", "cost USD"))
    return Sheet(Column("user"), *counts, Column("last seen", "whole"), nothing="(none)")
