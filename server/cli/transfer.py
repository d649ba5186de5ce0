"""`spendstream export` and `spendstream import`: write events of the log to files, and read them back."""

import os
import sys
from pathlib import Path
from typing import Any, Final, get_args

import click

from processor.core.clock import format_timestamp
from processor.log.errors import LogUnavailable
from processor.settings import Settings
from processor.wall_clock import now
from server.backup import exporter, importer
from server.backup.exporter import By, Exporter, Selection
from server.backup.importer import Importer
from server.cli import files
from server.cli.common import UNICODE, fail, open_log
from server.cli.grouped_help import Command
from server.cli.output import print_json, say
from server.cli.progress import Show, progress_bar
from server.cli.settings_flags import settings_options
from server.errors import Refused
from server.reads.params import parse_instant

EXIT_INCOMPLETE: Final = 1
SHOWN: Final = 20


@click.command("export", cls=Command)
@click.option("--start", metavar="TIME", help="First instant, like 2026-11-01 or 2026-11-01T12:00:00Z; default: all")
@click.option("--end", metavar="TIME", help="End of the range, exclusive, like --start; default: none")
@click.option(
    "--by",
    type=click.Choice(get_args(By)),
    default="arrival",
    show_default=True,
    help="The time that the range is about: the event's arrival, or its own timestamp",
)
@click.option("--project", type=UNICODE, help="Only this project")
@click.option("--output", metavar="FILE", default="-", help="File to write, gzip if it ends in .gz; default: stdout")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON")
@settings_options(Settings, "data_dir", "broker")
def export_events(
    start: str | None, end: str | None, by: By, project: str | None, output: str, as_json: bool, **flags: Any
) -> None:
    """Write events as lines of JSON, by a range of arrival times.

    With --by event-time the range is about the events' own timestamps. One event a line, every copy that arrived, in
    the order of the log; its `_spendstream` has project, key and arrival. `spendstream import` restores the lines
    exactly. Works beside a running server and without one.

    \b
    Example:
      spendstream export --start 2026-11-01 --end 2026-12-01 --output november.ndjson.gz
    """
    if not output.strip():
        fail("--output is empty: name a file, or - for standard output")
    selection = Selection(_instant("--start", start), _instant("--end", end), by, project)
    is_shown = output == "-" and sys.stdout.isatty()  # a progress bar would overlap the lines
    with open_log(flags) as log, progress_bar("export", hidden=is_shown) as bar:
        exporting = Exporter(log, selection, bar(""))
        try:
            with files.writing(output) as file:
                for line in exporting.lines():
                    file.write(line + b"\n")
        except BrokenPipeError:  # the reader of the pipe has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes standard output at exit
            sys.exit(EXIT_INCOMPLETE)
        except OSError as error:
            fail(f"cannot write {output}: {error}; nothing was kept of it")
    _report_export(exporting.tally, as_json, to_stderr=output == "-")
    sys.exit(EXIT_INCOMPLETE if exporting.tally.unreadable else 0)


def _instant(name: str, text: str | None) -> int | None:
    try:
        return None if text is None else parse_instant(name, text)
    except Refused as refused:
        fail(refused.message)


def _report_export(tally: exporter.ExportTally, as_json: bool, *, to_stderr: bool) -> None:
    oldest = None if tally.first_at is None else format_timestamp(tally.first_at)
    if as_json:
        summary = {
            "events": tally.events,
            "deadLetters": tally.dead,
            "unreadable": tally.unreadable,
            "oldestMessage": oldest,
        }
        print_json(summary, err=to_stderr)
        return
    say(f"{tally.events} events", err=True)
    if tally.dead:
        say(f"{tally.dead} messages left out: they are dead letters, see `spendstream dlq list`", err=True)
    if tally.unreadable:
        say(f"{tally.unreadable} messages could not be read: the export lacks them", err=True)


@click.command("import", cls=Command)
@click.argument("names", metavar="FILE...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Only check the lines")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON")
@settings_options(Settings, "data_dir", "broker", "partitions")
def import_events(names: tuple[str, ...], dry_run: bool, as_json: bool, **flags: Any) -> None:
    """Import exported events into the log.

    FILE is NDJSON, gzip if its name ends in .gz, or - for standard input. Events keep their project, organization, key
    and arrival, so cost tables and the windows of quotas come back as they were. They are deduplicated like any others:
    importing twice counts nothing twice (the copies count as duplicates). Lines that are not valid are listed with line
    and field, and the others are imported; the exit code is 1 then. Works beside a running server and without one; in a
    data directory without a log it makes one.

    \b
    Example:
      spendstream import november.ndjson.gz
    """
    missing = [name for name in names if name != "-" and not Path(name).is_file()]
    if missing:
        fail(f"no such file: {', '.join(missing)}; nothing was imported")
    with progress_bar("import") as bar:
        if dry_run:
            done = [_import(name, Importer(None, now), bar(name)) for name in names]
        else:
            with open_log(flags, create=True) as log:
                done = [_import(name, Importer(log, now), bar(name)) for name in names]
    tallies = dict(zip(names, done, strict=True))
    _report_import(tallies, as_json, dry_run)
    sys.exit(EXIT_INCOMPLETE if any(tally.rejected or damage for tally, damage in done) else 0)


def _import(name: str, into: Importer, show: Show) -> tuple[importer.ImportTally, str | None]:
    """Import one file; return the result, and what is wrong with the file if it could not be read to its end."""
    damage: list[str] = []
    try:
        into.run(files.until_damaged(name, show, damage))
    except LogUnavailable as error:
        fail(f"{error}; import the same files again when it can take events: no event will count twice")
    return into.tally, damage[0] if damage else None


def _report_import(tallies: dict[str, tuple[importer.ImportTally, str | None]], as_json: bool, dry_run: bool) -> None:
    accepted = sum(tally.accepted for tally, _ in tallies.values())
    rejected = sum(tally.rejected for tally, _ in tallies.values())
    bad = [
        {
            "file": name,
            "line": each.line,
            "event_id": each.event_id,
            "field": each.field,
            "code": each.code,
            "message": each.message,
        }
        for name, (tally, _) in tallies.items()
        for each in tally.bad
    ]
    damaged = {name: damage for name, (_, damage) in tallies.items() if damage}
    if as_json:
        print_json(
            {"accepted": accepted, "rejectedCount": rejected, "rejected": bad, "damaged": damaged, "dryRun": dry_run}
        )
        return
    for each in bad[:SHOWN]:
        field = f", {each['field']}" if each["field"] else ""
        say(f"{each['file']}:{each['line']}{field}: {each['message']}", err=True)
    if rejected > SHOWN:
        say(f"... and {rejected - SHOWN} more (--json names up to {importer.KEPT} of a file)", err=True)
    for name, damage in damaged.items():
        say(f"{name} is damaged: {damage}; what could be read of it counts", err=True)
    say(f"{accepted} events {'would be imported' if dry_run else 'imported'}, {rejected} lines refused")
