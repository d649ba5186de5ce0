"""The `spendstream` command: the group of all commands, and those of the roles."""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from processor import lifeline, memory
from processor.core.visible import visible, visible_lines
from processor.lean_imports import without_collections
from processor.log.errors import LogError
from processor.settings import Settings, SettingsError
from server.cli import output
from server.cli.common import export, fail, fail_to_start, load_or_exit
from server.cli.grouped_help import Command, HeadedGroup
from server.cli.settings_flags import settings_options
from server.settings import ServerSettings

# What only a role needs is loaded by the role: a third of the start of the other commands.


class Program(HeadedGroup):
    """The group of all commands; prints in any locale, and errors of the command line as text."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the program."""
        output.prepare()
        return super().main(*args, **extra)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the arguments of the group."""
        with _errors_as_text():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse the arguments of the command, and run it."""
        with _errors_as_text():
            return super().invoke(ctx)


@contextmanager
def _errors_as_text() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:  # it quotes arguments, which may be names of files
        is_help = isinstance(error, click.exceptions.NoArgsIsHelpError)  # its message is the help, on many lines
        error.message = visible_lines(error.message) if is_help else visible(error.message)
        raise


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="spendstream", prog_name="spendstream")
def main() -> None:
    """Ingest and metering of LLM usage: exact costs by user, model and day, at any moment.

    Settings come from flags, then SPENDSTREAM_* variables, then a TOML file (./spendstream.toml or --config).
    """
    os.umask(0o077)  # files contain hashes of keys and customers' events


@click.command(cls=Command)
@settings_options(ServerSettings)
def serve(**flags: Any) -> None:
    """Serve on this machine: the APIs, the worker and the event store.

    They are processes of one supervisor, which restarts those that end.
    """
    from processor import logs
    from server import supervisor

    settings = load_or_exit(ServerSettings, flags)
    _warn_of_memory("serve", settings.api_processes, has_store=settings.event_store)
    logs.configure(settings, "serve")
    try:
        sys.exit(asyncio.run(supervisor.run(settings, {"SPENDSTREAM_DATA_DIR": str(settings.data_dir)})))
    except (LogError, OSError) as error:
        fail_to_start(error)


@click.command(cls=Command)
@settings_options(ServerSettings)
def api(**flags: Any) -> None:
    """Serve the HTTP and gRPC APIs only.

    A worker on the same log fills the tables.
    """
    if lifeline.VARIABLE not in os.environ:
        _warn_of_memory("api")
    with without_collections():
        from processor import logs, tracing
        from server import api as role

    settings = load_or_exit(ServerSettings, flags)
    logs.configure(settings, "api")
    try:
        tracing.configure(settings, "api")
    except SettingsError as error:
        fail(str(error))
    is_alone = not lifeline.watch()
    _run_api(role.run(settings, is_alone=is_alone))
    tracing.finish()


def _warn_of_memory(role: str, processes: int = 1, *, has_store: bool = False) -> None:
    """Warn before anything large is loaded: the process may be killed right after that."""
    problem = memory.too_low(role, processes, has_store=has_store)
    if problem is not None:
        output.say(f"spendstream: {problem}", err=True)


def _run_api(coroutine: Any) -> None:
    try:
        import uvloop
    except ImportError:  # not on every platform; asyncio's own loop does it too, a little slower
        run = asyncio.run
    else:
        run = uvloop.run
    try:
        run(coroutine)
    except (LogError, OSError) as error:
        fail_to_start(error)


@click.command(cls=Command, hidden=True)
@settings_options(ServerSettings)
def query(**flags: Any) -> None:
    """Answer questions about events, for the APIs on this machine.

    They start it by themselves.
    """
    with without_collections():
        from processor import logs
        from server.explore import process
        from server.explore.query_bounds import QueryBounds

    settings = load_or_exit(ServerSettings, flags)
    bounds = QueryBounds(settings.query_memory, settings.query_threads, settings.query_timeout, settings.store_min_free)
    logs.configure(settings, "query")
    lifeline.watch()
    try:
        asyncio.run(process.run(settings, bounds))
    except (LogError, OSError) as error:
        fail_to_start(error)


@click.command(cls=Command)
@settings_options(Settings)
def worker(**flags: Any) -> None:
    """Run the worker only: it deduplicates events, counts quotas and sums up costs."""
    export(flags)
    _warn_of_memory("worker")
    os.execv(sys.executable, [sys.executable, "-m", "processor"])  # noqa: S606 - the role is a program of its own


@click.command(cls=Command)
@settings_options(Settings)
def store(**flags: Any) -> None:
    """Run the event store only: it keeps every counted event, to be found and queried.

    A worker on the same log counts them.
    """
    export(flags)
    _warn_of_memory("store")
    os.execv(sys.executable, [sys.executable, "-m", "processor.event_store"])  # noqa: S606 - the role is a program of its own


main.add_section("Serving", serve, api, worker, store)
main.add_command(query)  # which the roles start by themselves
# Only what is asked for is loaded: all of them take half as long again to start as one.
main.name_section(
    "Tables",
    users="server.cli.users:users",
    quota="server.cli.quota:quota",
    budgets="server.cli.budgets:budgets",
    tail="server.cli.tail:tail",
)
main.name_section(
    "Events",
    events="server.cli.events:events",
    trace="server.cli.trace_tree:trace",
    metrics="server.cli.metrics:metrics",
    prices="server.cli.prices:prices",
)
main.name_section(
    "Operations",
    verify="server.cli.verify:verify",
    rebuild="server.cli.rebuild:rebuild",
    backup="server.cli.backup:backup",
    **{"export": "server.cli.transfer:export_events", "import": "server.cli.transfer:import_events"},
    dlq="server.cli.dlq:dlq",
    loadtest="server.cli.loadtest:loadtest",
    demo="server.cli.demo:demo",
)
main.name_section(
    "Administration",
    keys="server.cli.keys:keys",
    projects="server.cli.keys:projects",
    orgs="server.cli.keys:orgs",
    version="server.cli.version:version",
)
