"""`spendstream backup`: a consistent copy of the embedded log, beside a running server or without one."""

from pathlib import Path
from typing import Any

import click

from processor.log.embedded.log import FILE_NAME, Log
from processor.settings import Settings
from server.cli.common import fail, open_log
from server.cli.grouped_help import Command
from server.cli.output import print_json, say
from server.cli.progress import progress_bar
from server.cli.settings_flags import settings_options


@click.command(cls=Command)
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@settings_options(Settings, "data_dir", "broker")
def backup(directory: str, as_json: bool, **flags: Any) -> None:
    """Copy the log, as of one instant, to DIR/log.db.

    It has every event, table, key and organization. Works beside a running server; what that acknowledges meanwhile is
    not in the copy. To restore, stop the server and put the file into an otherwise empty data directory; the other
    files are made anew. To check a copy: `spendstream verify --data-dir DIR`.

    \b
    Example:
      spendstream backup /backups/2026-11-28
    """
    if not directory.strip():
        fail("DIR is empty: name a new or empty directory")
    with open_log(flags) as log:
        if not isinstance(log, Log):
            fail("the log is on Kafka, which keeps copies of its own; `spendstream export` writes the events to a file")
        target = Path(directory) / FILE_NAME
        if target.exists():
            fail(f"{target} exists: name a new or empty directory")
        with progress_bar("backup") as bar:
            try:
                size = log.copy_to(target, bar(""))
            except OSError as error:
                fail(f"cannot write {target}: {error.strerror or error}; nothing was kept of it")
    if as_json:
        print_json({"file": str(target.absolute()), "bytes": size})
    else:
        say(f"{target}: {size} bytes")
