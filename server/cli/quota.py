"""`spendstream quota`: what an organization has used of its monthly quota."""

import asyncio
from typing import Any

import click
import msgspec
from msgspec import Struct

from processor.wall_clock import now
from server.cli.answer_source import answer, source_options
from server.cli.common import UNICODE, open_log
from server.cli.grouped_help import Command
from server.cli.output import print_encoded
from server.cli.remote import Question
from server.cli.sheet import Column, Sheet
from server.errors import Refused
from server.reads import read_json
from server.tenancy.keys import DEFAULT_ORGANIZATION, make_key


class Window(Struct):
    """A window, as far as it is shown."""

    start: str
    used: int
    limit: int | None


class ShownQuota(Struct, rename="camel"):
    """The answer of `GET /v1/quota`, as far as it is shown."""

    organization: str
    period: str
    remaining: int | None
    resets_at: str
    windows: dict[str, Window]
    duplicates: int
    conflicts: int


@click.command(cls=Command)
@click.option(
    "--org",
    type=UNICODE,
    help=f"Organization to show  [default: the key's; from the data directory {DEFAULT_ORGANIZATION!r}]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as GET /v1/quota answers")
@source_options
def quota(org: str | None, as_json: bool, **flags: Any) -> None:
    """Show what an organization has used of its monthly quota.

    Windows are by arrival. Asks the server that --url names. Without it, asks the server that runs on the data
    directory; if there is none, or it does not answer this key, reads the data directory itself, and says so.

    \b
    Examples:
      SPENDSTREAM_KEY=lqt_... spendstream quota --url http://127.0.0.1:8080
      spendstream quota --org acme
    """
    where = org or DEFAULT_ORGANIZATION

    def check(body: bytes) -> None:
        found = msgspec.json.decode(body, type=ShownQuota).organization
        if org is not None and found != org:
            raise Refused(
                "forbidden",
                f"this key is of the organization {found!r}, not of {org!r}: use a key of that, or leave out --org",
            )

    body = answer(flags, Question("/v1/quota"), lambda left: _read(left, where), f"organization {where}", check)
    print_encoded([body]) if as_json else _print(msgspec.json.decode(body, type=ShownQuota))


def _read(flags: dict[str, Any], organization: str) -> bytes:
    from server.cli.log_tables import reads_of

    with open_log(flags) as log:
        reads = reads_of(log)
    found = asyncio.run(reads.get_quota(make_key("", at=now(), organization=organization), None))
    return read_json.encode(read_json.quota(found))


def _print(found: ShownQuota) -> None:
    table = Sheet(
        Column("window", "whole"),
        Column("since", "whole"),
        Column("used", "number"),
        Column("limit", "number"),
        Column("remaining", "number"),
        nothing="",
    )
    table.notes.append(
        f"{found.organization}, {found.period}: resets {found.resets_at}; this month "
        f"{found.duplicates:,} duplicates, {found.conflicts:,} of them conflicts, not charged"
    )
    for kind, window in found.windows.items():
        remaining = found.remaining if kind == "month" else None
        table.add(kind, window.start, window.used, "none" if window.limit is None else window.limit, remaining)
    table.print()
