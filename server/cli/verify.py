"""`spendstream verify`: recompute the tables from the events and compare."""

import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click

from processor import logs
from processor.event_store.store_directory import StoreDirectory
from processor.log.port import LogReader
from processor.settings import Settings
from processor.state.verify import Difference, Problem, Verification, VerifyError, damage_elsewhere, partitions_of
from server.cli.common import fail, load_or_exit, open_log
from server.cli.grouped_help import Command
from server.cli.output import print_json, say
from server.cli.progress import Show, progress_bar
from server.cli.settings_flags import settings_options

SHOWN: Final = 20
KEPT: Final = 1000
"""Differences of a partition that --json lists."""


class PartitionResult:
    """The result of the verification of one partition."""

    def __init__(self, number: int, verification: Verification) -> None:
        found = verification.run()
        self.number = number
        self.differences: list[Difference] = list(islice(found, KEPT))
        self.count = len(self.differences) + sum(1 for _ in found)
        self.messages = verification.messages
        self.offset = verification.offset
        self.settled = verification.settled
        self.problems = verification.problems
        self.problem_count = verification.problem_count
        self.notices = verification.notices


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@settings_options(Settings, "data_dir", "broker", "event_store", "store_dir")
def verify(as_json: bool, **flags: Any) -> None:
    """Recompute every table from the log and print the differences.

    Exit code 1 if there are any.

    Works beside a running server: it compares the tables as of one flush with the events that they contain, the claims
    with their events, the id index with the claims, the event store with the events, user by user, and each event with
    its original bytes. Damaged records of all
    topics are listed, and records that are missing although other state refers to them.

    It needs memory for the rows of one partition, twice, and disk space for its ids (56 bytes each, and a copy of the
    index).

    \b
    Example:
      spendstream verify --json
    """
    settings = load_or_exit(Settings, flags)
    logs.configure(settings, "verify")
    with open_log(flags) as log, progress_bar("verify") as bar:
        numbers = range(partitions_of(log))
        verdicts = [_verify(log, number, settings, bar(f"partition {number}")) for number in numbers]
        elsewhere = damage_elsewhere(log)
    count = sum(verdict.count for verdict in verdicts)
    problems = len(elsewhere) + sum(verdict.problem_count for verdict in verdicts)
    if as_json:
        print_json(_public(verdicts, elsewhere))
    else:
        _show(verdicts, elsewhere, count, problems)
    for verdict in verdicts:
        if not verdict.settled:
            say(
                f"partition {verdict.number}: the worker stopped in the middle of a flush, so rows may be ahead of "
                "the events compared; start it and verify again",
                err=True,
            )
    if problems or count:
        say("`spendstream rebuild --help` says what can be rebuilt from the events", err=True)
    sys.exit(1 if count or problems else 0)


def _show(verdicts: list[PartitionResult], elsewhere: list[Problem], count: int, problems: int) -> None:
    for problem in islice(_all_problems(verdicts, elsewhere), SHOWN):
        say(f"partition {problem.partition}: {problem.text}")
    if problems > SHOWN:
        say(f"... and {problems - SHOWN} more problems (--json names up to {KEPT} of a partition)")
    for difference in islice((each for verdict in verdicts for each in verdict.differences), SHOWN):
        _print(difference)
    if count > SHOWN:
        say(f"... and {count - SHOWN} more (--json names up to {KEPT} of a partition)")
    for verdict in verdicts:
        for notice in verdict.notices:
            say(f"partition {verdict.number}: note: {notice}")
    total = f"{sum(verdict.messages for verdict in verdicts)} messages, {count} differences"
    say(f"{total}, {problems} problems" if problems else total)


def _all_problems(verdicts: list[PartitionResult], elsewhere: list[Problem]) -> Iterator[Problem]:
    for verdict in verdicts:
        yield from verdict.problems
    yield from elsewhere


def _has_store(directory: Path, *, is_embedded: bool) -> bool:
    """Return whether there is an event store to compare: it may be on another machine, or this is a backup, or it was
    thrown away by `rebuild`."""
    if not is_embedded:
        return directory.is_dir()
    return StoreDirectory(directory).is_there or any(directory.glob("*.parquet"))


def _verify(log: LogReader, number: int, settings: Settings, show: Show) -> PartitionResult:
    where = settings.data_dir if settings.data_dir.is_dir() else None
    index = settings.data_dir / "index" / f"{number:04d}"
    with tempfile.TemporaryDirectory(dir=where, prefix="verify-") as scratch:
        try:
            store = settings.segments_dir if settings.event_store else None
            if store is not None and not _has_store(store, is_embedded=settings.broker == "sqlite://"):
                store = None
            return PartitionResult(number, Verification(log, number, Path(scratch), show, index, store))
        except VerifyError as error:
            fail(str(error))


def _public(verdicts: list[PartitionResult], elsewhere: list[Problem]) -> dict[str, Any]:
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
        "problemCount": len(elsewhere) + sum(verdict.problem_count for verdict in verdicts),
        "problems": [each._asdict() for each in _all_problems(verdicts, elsewhere)],
        "notices": [
            {"partition": verdict.number, "text": notice} for verdict in verdicts for notice in verdict.notices
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
