"""The role `store`: `python -m processor.event_store`. Settings come from the environment and the TOML file."""

from processor.lean_imports import without_collections

with without_collections():
    import asyncio
    import gc
    import json
    import os
    import signal
    import sys
    import time
    from typing import TYPE_CHECKING, Any, Final

    from processor import lifeline, logs, memory, open_files, restart
    from processor.background import step_back
    from processor.core.visible import visible_lines
    from processor.log.data_directory import make_data_directory
    from processor.log.embedded.writer_process import WriterProcess
    from processor.log.errors import LogError, LogUnavailable
    from processor.log.file_lock import FileLock
    from processor.settings import Settings, SettingsError, load
    from processor.structured_log import get_logger
    from processor.wall_clock import now

if TYPE_CHECKING:
    from processor.event_store.store_app import StoreApplication

LOCK_PATIENCE: Final = 5.0
"""Seconds to wait for an earlier store that is ending."""

NICE: Final = 19
"""How much lower its priority is than that of ingest and the tables."""

STOP_PATIENCE: Final = 3.0
"""Seconds for the cut that is being made when the store has to stop: what it leaves, the next start does again."""

COLLECT_AFTER: Final = (50_000, 20, 100)
"""For `gc.set_threshold`. With Python's default (700, 10, 10) collections took a tenth of the reading of events: their
values lie in lists until a segment is cut, and hardly any object is part of a cycle."""

ARROW_MEMORY: Final = ("ARROW_DEFAULT_MEMORY_POOL", "system")
"""Where Arrow takes its memory from, unless the environment says it, and where the C library gives memory back. Of
Arrow's own default 40 MiB more are left, which the thread of the cuts has freed and no other can give back. Arrow reads
it once, so it is set before pyarrow is imported (https://arrow.apache.org/docs/cpp/env_vars.html)."""

EXIT_USAGE: Final = 2
EXIT_CRASHED: Final = 70


def main() -> int:
    """Run the store until SIGTERM; return the exit code."""
    is_again = restart.pause()
    open_files.raise_limit()
    try:
        settings = load(Settings)
        logs.configure(settings, "store")
        if not settings.event_store:
            raise SettingsError("the event store is switched off: SPENDSTREAM_EVENT_STORE")
        make_data_directory(settings.data_dir)
        lock = FileLock(settings.data_dir / "store.lock")
        lock.acquire("another store runs on this data directory", LOCK_PATIENCE)
        writer = None if settings.broker.startswith("kafka://") else WriterProcess(settings.data_dir)
        step_back(NICE)
        if memory.can_trim():
            os.environ.setdefault(*ARROW_MEMORY)
        with without_collections():  # what the process that writes does without
            from processor.event_store.store_app import StoreApplication
        application = StoreApplication(settings, now, writer)
    except (SettingsError, LogError) as error:
        print(visible_lines(f"spendstream store: {error}"), file=sys.stderr)  # noqa: T201 - a person started it wrongly
        if is_again and isinstance(error, LogUnavailable):
            restart.arm("processor.event_store")
            restart.end(EXIT_CRASHED)
        return EXIT_USAGE
    if not lifeline.watch() and settings.broker != "sqlite://":
        restart.arm("processor.event_store")
    return asyncio.run(_run_and_end(application))


async def _run_and_end(application: "StoreApplication") -> int:
    """End the process within the event loop, whose own end would wait for every task and thread: for a cut that takes
    long, for the repair of a file. A merge that is under way is not waited for either: its files are swept."""
    code = EXIT_CRASHED
    try:
        code = await _run(application)
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 - also where nobody reads the ready line any more
        get_logger().critical("store.crashed", error=repr(error))
    finally:
        os._exit(code)


async def _run(application: "StoreApplication") -> int:
    log = get_logger()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    began = time.monotonic()
    app: Any = application.faust
    stopped = asyncio.ensure_future(stop.wait())
    started = asyncio.ensure_future(application.start())
    await asyncio.wait({started, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if started.done():
        try:
            started.result()
        except (LogError, OSError) as error:
            print(visible_lines(f"spendstream store: {error}"), file=sys.stderr)  # noqa: T201 - a person started it wrongly
            return EXIT_USAGE
        ended = asyncio.ensure_future(app.wait_until_stopped())
        ready = asyncio.ensure_future(application.has_partitions.wait())
        await asyncio.wait({ended, stopped, ready}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            gc.collect()
            gc.freeze()
            gc.set_threshold(*COLLECT_AFTER)
            log.info("store.ready", seconds=round(time.monotonic() - began, 2), partitions=application.partitions)
            print(json.dumps({"event": "ready", "role": "store"}), flush=True)  # noqa: T201 - the ready line
            await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            log.critical("store.crashed", error=repr(app.crash_reason))
            restart.end(EXIT_CRASHED)
    stopping = asyncio.ensure_future(application.stop())
    await asyncio.wait({stopping}, timeout=STOP_PATIENCE)  # Faust does not let go of all that is cancelled
    if stopping.done():
        stopping.result()
    else:
        log.warning("store.killed", after=STOP_PATIENCE)
    log.info("store.stopped", rows=application.store.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
