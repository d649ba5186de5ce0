"""`spendstream version`."""

import platform
from importlib.metadata import version as version_of

import click

from processor.core.kernel.loaded import RUNNING
from server.cli import output
from server.cli.grouped_help import Command


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def version(as_json: bool) -> None:
    """Print the version, the Python, and whether the compiled kernel runs.

    `pure`: Python does its work, to the same bytes; it was not built, or SPENDSTREAM_PURE=1 keeps it out.
    """
    found = {"version": version_of("spendstream"), "python": platform.python_version(), "kernel": RUNNING}
    if as_json:
        output.print_json(found)
    else:
        output.say(*(f"{name:<8} {value}" for name, value in found.items()))
