"""`spendstream dlq`: list the messages that could not be processed, and retry them."""

import sys
from typing import Any, Final

import click

from processor.core.clock import format_timestamp
from processor.log import dead_letters
from processor.log.dead_letters import Letter
from processor.log.port import LogReader
from processor.settings import Settings
from processor.wall_clock import now
from server.cli.common import fail, open_log
from server.cli.grouped_help import HeadedGroup
from server.cli.output import print_json, say
from server.cli.settings_flags import settings_options
from server.cli.sheet import Column, Sheet

_data_dir: Final = settings_options(Settings, "data_dir", "broker")
_json: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON")

EXIT_UNREADABLE: Final = 1
"""Exit code: the message to retry is damaged, or this version cannot read it."""


@click.group(cls=HeadedGroup)
def dlq() -> None:
    """List and retry messages that could not be processed.

    These dead letters do not stop their partition, are in no table, and are never removed.
    """


@dlq.command("list")
@_json
@_data_dir
def list_letters(as_json: bool, **flags: Any) -> None:
    """List the dead letters with their reasons, beside a running server or without one.

    \b
    Example:
      spendstream dlq list --json
    """
    with open_log(flags) as log:
        found = _all(log)
    if as_json:
        print_json([_public(letter) for letter in found])
        return
    table = Sheet(
        Column("partition", "number"),
        Column("offset", "number"),
        Column("events", "number"),
        Column("bytes", "number"),
        Column("when", "whole"),
        Column("retried"),
        Column("reason"),
        nothing="",
    )
    for letter in found:
        row = _public(letter)
        retried = row["retried"]
        table.add(
            str(row["partition"]),
            str(row["offset"]),
            _events(letter),
            row["bytes"],
            row["at"],
            None if retried is None else f"{retried['at']}, as offset {retried['offset']}",
            row["reason"],
        )
    table.print()
    say(f"{len(found)} dead letters, {sum(letter.retry is None for letter in found)} not retried", err=True)


@dlq.command()
@click.option("--partition", type=click.IntRange(min=0), help="Partition of the one message to retry")
@click.option("--offset", type=click.IntRange(min=0), help="Its offset, as `spendstream dlq list` shows it")
@click.option("--all", "everything", is_flag=True, help="Every letter that was not retried yet")
@click.option("--again", is_flag=True, help="Also those that were retried before; copies never count twice")
@_json
@_data_dir
def retry(
    partition: int | None, offset: int | None, everything: bool, again: bool, as_json: bool, **flags: Any
) -> None:
    """Append dead letters' messages to the events again, to be processed as new ones.

    Retry once the reason is gone, usually with a newer version. Safe to repeat: an event that was counted before is a
    duplicate. A message that fails again is a new dead letter. Messages that this version cannot read are skipped. A
    damaged record is never retried: what it contained is not known, so the client has to send its events again.

    \b
    Examples:
      spendstream dlq retry --partition 0 --offset 1234
      spendstream dlq retry --all
    """
    if everything == (partition is not None or offset is not None) or (partition is None) != (offset is None):
        fail("give --partition and --offset, as `spendstream dlq list` shows them, or --all")
    with open_log(flags) as log:
        found = [letter for letter in _all(log) if everything or _is_at(letter, partition, offset)]
        if not everything and not found:
            fail(f"no dead letter at partition {partition}, offset {offset}; `spendstream dlq list` shows them all")
        damaged = [letter for letter in found if letter.dead.damaged]
        unreadable = [letter for letter in found if letter.events is None and not letter.dead.damaged]
        before = [letter for letter in found if letter.events is not None and letter.retry is not None and not again]
        left_alone = {id(letter) for letter in (*damaged, *unreadable, *before)}
        wanted = {letter.dead.place for letter in found if id(letter) not in left_alone}
        done = [note for number in range(log.partitions) for note in dead_letters.retry(log, number, wanted, now)]
    if as_json:
        print_json(
            {
                "retried": [
                    {"partition": note.retried[1], "offset": note.retried[2], "newOffset": note.to} for note in done
                ],
                "retriedBefore": len(before),
                "unreadable": len(unreadable),
                "damaged": len(damaged),
            }
        )
    else:
        for note in done:
            say(f"partition {note.retried[1]}: offset {note.retried[2]} goes again as offset {note.to}")
        say(_summary(len(done), len(before), len(unreadable), len(damaged)))
    sys.exit(EXIT_UNREADABLE if (unreadable or damaged) and not everything else 0)


def _summary(done: int, before: int, unreadable: int, damaged: int) -> str:
    parts = [f"{done} retried"]
    if before:
        parts.append(f"{before} retried before (--again sends them once more)")
    if unreadable:
        parts.append(f"{unreadable} that this version cannot read left alone")
    if damaged:
        parts.append(
            f"{damaged} damaged, which cannot be sent again: their bytes are not those that were stored, so the sender "
            "has to send their events anew"
        )
    return "; ".join(parts)


def _all(log: LogReader) -> list[Letter]:
    return [letter for number in range(log.partitions) for letter in dead_letters.letters(log, number)]


def _is_at(letter: Letter, partition: int | None, offset: int | None) -> bool:
    return (letter.dead.partition, letter.dead.offset) == (partition, offset)


def _events(letter: Letter) -> str | int:
    if letter.dead.damaged:
        return "damaged"
    return "unreadable" if letter.events is None else letter.events


def _public(letter: Letter) -> dict[str, Any]:
    dead = letter.dead
    return {
        "partition": dead.partition,
        "offset": dead.offset,
        "topic": dead.topic,
        "at": format_timestamp(dead.at),
        "reason": dead.reason,
        "events": letter.events,
        "damaged": letter.dead.damaged,
        "bytes": letter.size,
        "retried": None
        if letter.retry is None
        else {"at": format_timestamp(letter.retry.at), "offset": letter.retry.to},
    }
