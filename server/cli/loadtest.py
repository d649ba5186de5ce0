"""`spendstream loadtest`: send generated traffic to a running server and measure it."""

import asyncio
import sys
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import click

from processor.wall_clock import now
from server.cli.common import fail
from server.cli.grouped_help import Command
from server.cli.load_traffic import Generator
from server.cli.output import print_json, say
from server.cli.progress import Show, progress_bar
from server.cli.remote import key_option, url_option
from server.ingest.intake import MAX_EVENTS

if TYPE_CHECKING:
    from server.cli.load_senders import LoadResult

SCHEMES: Final = ("http", "https", "grpc", "grpcs")
EXIT_INCOMPLETE: Final = 1


@click.command(cls=Command)
@url_option("--target", "http(s):// or grpc(s):// and host:port  [default: http:// and SPENDSTREAM_HTTP_BIND]")
@key_option()
@click.option("--events", metavar="N", type=click.IntRange(1), default=10_000, show_default=True, help="Events to send")
@click.option("--rate", metavar="N", type=click.FloatRange(0, min_open=True), help="Events a second; default: no limit")
@click.option("--users", metavar="N", type=click.IntRange(1), default=1000, show_default=True, help="Users they are of")
@click.option(
    "--batch",
    metavar="N",
    type=click.IntRange(1, MAX_EVENTS),
    default=MAX_EVENTS,
    show_default=True,
    help="Events a request",
)
@click.option(
    "--connections",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=8,
    show_default=True,
    help="Requests under way at the same time",
)
@click.option("--seed", metavar="N", type=int, help="Seed of the traffic, event ids included; default: random")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON")
def loadtest(
    url: str,
    key: str,
    events: int,
    rate: float | None,
    users: int,
    batch: int,
    connections: int,
    seed: int | None,
    as_json: bool,
) -> None:
    """Send generated traffic to a running server and measure it.

    Prints throughput and latency. The events are real: they count in the tables of the key's project and in its quota,
    as users `loadtest-...` of environment `loadtest`, so use a separate project. With --rate a latency counts from when
    the request was due, so that a server that falls behind cannot hide it. Requests that the server refuses for now
    (429, 503) are retried and counted. Exit code 1 if not every event was accepted.

    \b
    Examples:
      SPENDSTREAM_KEY=lqt_... spendstream loadtest --events 100000
      spendstream loadtest --target grpc://127.0.0.1:50051 --rate 5000 --json
    """
    from server.cli.load_senders import Failed, connected, run

    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc:
        fail(f"--target must be {', '.join(SCHEMES)}:// and host:port, not {url!r}")
    generator = Generator(users, seed)

    async def go(show: Show) -> "LoadResult":
        async with connected(url, key, generator, connections) as sender:
            return await run(sender, events, batch=batch, connections=connections, rate=rate, clock=now, show=show)

    with progress_bar("loadtest") as bar:
        try:
            outcome = asyncio.run(go(bar("")))
        except* Failed as failures:
            fail(str(failures.exceptions[0]))
    _report(outcome, events, as_json)
    sys.exit(0 if outcome.accepted == events else EXIT_INCOMPLETE)


def _report(outcome: "LoadResult", events: int, as_json: bool) -> None:
    latency = outcome.percentiles()
    if as_json:
        print_json(
            {
                "events": events,
                "accepted": outcome.accepted,
                "rejected": outcome.rejected,
                "lost": outcome.lost,
                "sentAgain": dict(outcome.again),
                "seconds": round(outcome.seconds, 3),
                "eventsPerSecond": round(outcome.rate, 1),
                "latencyMs": latency,
            }
        )
        return
    say(f"{outcome.accepted:,} of {events:,} events accepted in {outcome.seconds:.1f} s: {outcome.rate:,.0f}/s")
    say("latency of a request: " + ", ".join(f"{name} {value:,.1f} ms" for name, value in latency.items()))
    if outcome.rejected or outcome.lost:
        say(f"{outcome.rejected:,} rejected, {outcome.lost:,} given up")
    for why, count in sorted(outcome.again.items()):
        say(f"{why}: {count:,} requests were sent again")
