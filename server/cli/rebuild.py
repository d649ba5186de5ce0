"""`spendstream rebuild`: recompute rows and id index from the events."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import click

from processor import logs
from processor.event_store.store_directory import StoreDirectory
from processor.log.address import LogAddress
from processor.log.data_directory import make_data_directory
from processor.log.embedded.checkpointer import Checkpointer
from processor.log.embedded.log import Log
from processor.log.errors import LogError
from processor.log.file_lock import LOOK, FileLock
from processor.log.port import LogWriter
from processor.log.topics import EVENTS, PARTITIONED
from processor.settings import Settings
from processor.state.rebuild import SCRATCH, EmbeddedTarget, Rebuild, RebuildRefused, Rebuilt, Target, remove_scratch
from processor.wall_clock import now
from server.cli.common import fail, load_or_exit
from server.cli.grouped_help import Command
from server.cli.output import print_json, say
from server.cli.progress import Show, progress_bar
from server.cli.settings_flags import settings_options
from server.processes import server_address

EXIT_LOST: Final = 1
"""Exit code: the rows were rebuilt, but something could not be recovered."""


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@click.option(
    "--allow-loss",
    is_flag=True,
    help="Rebuild also where the rows contain something that the events do not: that is lost",
)
@settings_options(Settings, "data_dir", "broker", "store_dir")
def rebuild(as_json: bool, allow_loss: bool, **flags: Any) -> None:
    """Rebuild all rows, the id index and the event store from the events.

    The server (on Kafka: every worker and store) has to be stopped. Where retention has deleted events, it starts from
    their checkpoint. Missing claims are written again; keys, quotas, budgets and dead letters stay as they are. What
    cannot be recovered is listed, and the exit code is 1 then. A partition whose rows contain something that the events
    do not is left as it is (exit code 2), unless --allow-loss is given.

    It may be stopped or killed at any moment and run again: each partition is replaced as a whole. The next start makes
    the id index and the event store. It needs memory for the rows of one partition, twice, and disk space for its rows
    and ids (56 bytes each).

    \b
    Example:
      spendstream verify || spendstream rebuild
    """
    settings = load_or_exit(Settings, flags)
    logs.configure(settings, "rebuild")
    try:
        with _alone(settings), _opened(settings) as log, progress_bar("rebuild") as bar:
            target = _target(settings, log)
            done: list[Rebuilt] = []
            for number in range(log.partitions):
                try:
                    done.append(_rebuild(settings, log, target, number, bar(f"partition {number}"), allow_loss))
                except RebuildRefused as error:
                    _report(done, as_json)
                    fail(str(error))
            if settings.broker == "sqlite://":  # else the mark says that it is the directory of all
                StoreDirectory(settings.segments_dir).disclaim()
    except LogError as error:
        fail(str(error))
    _report(done, as_json)
    sys.exit(EXIT_LOST if any(each.lost for each in done) else 0)


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Hold the lock of the data directory, so that no server, worker or store runs there. Raises `LogError`."""
    if settings.broker == "sqlite://" and not settings.data_dir.is_dir():
        raise LogError(f"there is no log in {settings.data_dir}: name the data directory of the server")
    make_data_directory(settings.data_dir)
    locks = [FileLock(settings.data_dir / name) for name in (server_address.LOCK, "worker.lock", "store.lock")]
    try:
        for lock in locks:
            lock.acquire(f"a server, worker or store runs on {settings.data_dir}: stop it first", LOOK)
        remove_scratch(settings.data_dir)
        yield
    finally:
        for lock in locks:
            lock.close()


@contextmanager
def _opened(settings: Settings) -> Iterator[LogWriter]:
    """Open the log with all of its topics. Raises `LogError` if there is no log, or it has no events."""
    address = LogAddress.of(settings)
    log = address.open(upgrade=True)  # nobody else has it open: see `_alone`
    held = ExitStack()
    try:
        address.claim(log.identity, keeps=False)
        topics = log.topics()
        if EVENTS not in topics:
            raise LogError(f"the topic {log.name_of(EVENTS)} is gone: there is nothing to rebuild from")
        if address.kafka is None:
            held.enter_context(_checkpoints(settings.data_dir))
        if missing := [topic for topic in PARTITIONED if topic not in topics]:
            if address.kafka is None:
                raise LogError(f"the log in {settings.data_dir} has no topics {', '.join(missing)}: restore a backup")
            log.close()
            log = address.open(topics[EVENTS], create=True)
        yield log
    finally:
        log.close()
        held.close()


@contextmanager
def _checkpoints(data_dir: Path) -> Iterator[None]:
    """Keep the write-ahead log small, and empty at the end."""
    checkpointer = Checkpointer(data_dir)
    checkpointer.start()
    try:
        yield
    finally:
        checkpointer.stop()


def _target(settings: Settings, log: LogWriter) -> Target:
    if isinstance(log, Log):
        return EmbeddedTarget(log, now())
    from processor.log.kafka.owner import Owner

    address = LogAddress.of(settings)
    assert address.kafka is not None
    owner = Owner(address.kafka, now())
    owner.check_alone()
    return owner


def _rebuild(settings: Settings, log: LogWriter, target: Target, number: int, show: Show, allow_loss: bool) -> Rebuilt:
    with tempfile.TemporaryDirectory(dir=settings.data_dir, prefix=SCRATCH) as scratch:
        address = LogAddress.of(settings)
        directory = StoreDirectory(settings.segments_dir)
        # Before, as it may be refused at a later partition, or killed: segments of other rows are never left.
        work = Rebuild(address, log, number, Path(scratch), target, show, lambda: directory.clear(number))
        return work.run(allow_loss=allow_loss)


def _report(done: list[Rebuilt], as_json: bool) -> None:
    if as_json:
        print_json({"partitions": [_public(each) for each in done]})
        return
    for each in done:
        say(
            f"partition {each.partition}: {each.messages} messages applied up to {each.offset}, {each.rows} rows "
            f"written, {each.removed} removed, {each.claims} claims written"
        )
        for text in each.lost:
            say(f"partition {each.partition}: could not be recovered: {text}")
    say(f"{len(done)} partitions rebuilt; the id index and the event store are made by the next start")


def _public(done: Rebuilt) -> dict[str, Any]:
    return {
        "partition": done.partition,
        "offset": done.offset,
        "messages": done.messages,
        "rows": done.rows,
        "removed": done.removed,
        "claims": done.claims,
        "lost": done.lost,
    }
