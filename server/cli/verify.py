"""`spendstream verify`: do the tables say what the events say?"""

import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click

from processor.log.port import LogReader
from processor.settings import Settings
from processor.state.verify import Difference, Verification, VerifyError
from server.cli.common import fail, load_or_exit, open_log, settings_options
from server.cli.output import print_json, say
from server.cli.progress import Show, progress_bar

SHOWN: Final = 20
KEPT: Final = 1000
"""Differences of a partition that --json names."""


class Verdict:
    """What the verification of one partition came to."""

    def __init__(self, number: int, verification: Verification) -> None:
        found = verification.run()
        self.number = number
        self.differences: list[Difference] = list(islice(found, KEPT))
        self.count = len(self.differences) + sum(1 for _ in found)
        self.messages = verification.messages
        self.offset = verification.offset
        self.settled = verification.settled


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@settings_options(Settings, "data_dir", "broker")
def verify(as_json: bool, **flags: Any) -> None:
    """Recompute every table from the log and print the differences; exit 1 if there is one.

    Works beside a running server: it compares the tables as of one flush with the events that they contain. It needs
    memory for the rows of one partition, twice, and room on the disk for its ids (28 bytes each).

    \b
    Example:
      spendstream verify --json
    """
    settings = load_or_exit(Settings, flags)
    with open_log(flags) as log, progress_bar("verify") as bar:
        verdicts = [_verify(log, number, settings, bar(f"partition {number}")) for number in range(log.partitions)]
    count = sum(verdict.count for verdict in verdicts)
    if as_json:
        print_json(_public(verdicts))
    else:
        for difference in islice((each for verdict in verdicts for each in verdict.differences), SHOWN):
            _print(difference)
        if count > SHOWN:
            say(f"... and {count - SHOWN} more (--json names up to {KEPT} of a partition)")
        say(f"{sum(verdict.messages for verdict in verdicts)} messages, {count} differences")
    for verdict in verdicts:
        if not verdict.settled:
            say(
                f"partition {verdict.number}: the worker stopped in the middle of a flush, so rows may be ahead of "
                "the events compared; start it and verify again",
                err=True,
            )
    sys.exit(1 if count else 0)


def _verify(log: LogReader, number: int, settings: Settings, show: Show) -> Verdict:
    where = settings.data_dir if settings.data_dir.is_dir() else None
    with tempfile.TemporaryDirectory(dir=where, prefix="verify-") as scratch:
        try:
            return Verdict(number, Verification(log, number, Path(scratch), show))
        except VerifyError as error:
            fail(str(error))


def _public(verdicts: list[Verdict]) -> dict[str, Any]:
    return {
        "messages": sum(verdict.messages for verdict in verdicts),
        "partitions": [
            {"partition": verdict.number, "offset": verdict.offset, "messages": verdict.messages}
            for verdict in verdicts
        ],
        "differenceCount": sum(verdict.count for verdict in verdicts),
        "differences": [
            {
                "partition": each.partition,
                "row": each.parts or each.key,
                "columns": {name: {"table": pair[0], "log": pair[1]} for name, pair in each.columns().items()},
                "missing": {(True, False): "table", (False, True): "log"}.get((each.table is None, each.log is None)),
            }
            for verdict in verdicts
            for each in verdict.differences
        ],
    }


def _print(difference: Difference) -> None:
    row = " ".join("(none)" if part is None else str(part) for part in difference.parts) or difference.key
    if difference.table is None:
        what = "is missing in the table"
    else:
        what = "is not in the log" if difference.log is None else "differs"
    say(f"partition {difference.partition}: {row} {what}")
    for name, (table, log) in difference.columns().items():
        say(f"  {name}: table {_shown(table)}, log {_shown(log)}")


def _shown(number: int | None) -> str:
    return "none" if number is None else str(number)
