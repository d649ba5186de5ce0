"""`spendstream verify`: do the tables say what the events say?"""

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from processor.core.message import MessageError
from processor.settings import Settings
from processor.state.verify import Difference
from processor.state.verify import verify as verify_partition
from server.cli.common import fail, open_log, print_json, settings_options

SHOWN = 20


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@settings_options(Settings, "data_dir", "broker")
def verify(as_json: bool, **flags: Any) -> None:
    """Recompute every table from the log and print the differences; exit 1 if there is one.

    Works beside a running server: it compares the tables as of one instant with the events they contain.
    """
    differences: list[Difference] = []
    messages = 0
    bar = Progress(
        TextColumn("partition {task.fields[partition]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("messages"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with open_log(flags) as log, bar:
        for number in range(log.partitions):
            task = bar.add_task("verify", partition=number, total=None)
            with tempfile.TemporaryDirectory(prefix="spendstream-verify-") as scratch:
                try:
                    found = verify_partition(log, number, Path(scratch), partial(_show, bar, task))
                except MessageError as error:
                    fail(
                        f"partition {number} has a message that is not in the dead letters and cannot be read: {error}"
                    )
            differences += found
            messages += int(bar.tasks[task].completed)
    if as_json:
        print_json({"messages": messages, "differences": [difference._asdict() for difference in differences]})
    else:
        for difference in differences[:SHOWN]:
            click.echo(f"{difference.key}\n  table {difference.table}\n  log   {difference.log}")
        click.echo(f"{messages} messages, {len(differences)} differences")
    sys.exit(1 if differences else 0)


def _show(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)
