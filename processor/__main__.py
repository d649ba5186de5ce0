"""The role `worker`: `python -m processor`. Settings come from the environment and the TOML file."""

from processor.lean_imports import without_collections

with without_collections():
    import asyncio
    import gc
    import json
    import os
    import signal
    import sys
    import time
    from typing import Any, Final

    from processor import lifeline, logs, open_files, restart, tracing
    from processor.app import Application
    from processor.core.kernel.loaded import RUNNING
    from processor.core.visible import visible_lines
    from processor.log.data_directory import make_data_directory
    from processor.log.embedded.checkpointer import Checkpointer
    from processor.log.errors import LogError, LogUnavailable
    from processor.log.file_lock import FileLock
    from processor.settings import Settings, SettingsError, load
    from processor.state.rebuild import remove_scratch
    from processor.structured_log import get_logger
    from processor.wall_clock import now

LOCK_PATIENCE: Final = 5.0
"""Seconds to wait for an earlier worker that is ending."""

COLLECT_AFTER: Final = (50_000, 20, 20)
"""For `gc.set_threshold`, as in the API: with Python's default (700, 10, 10) each flush and each read of the changelog
make enough objects for several collections. Hardly any are cycles."""

STOP_PATIENCE: Final = 8.0
"""Seconds for that; a supervisor has less, and kills a worker that takes longer."""

EXIT_USAGE: Final = 2
EXIT_CRASHED: Final = 70


def main() -> int:
    """Run the worker until SIGTERM; return the exit code."""
    is_again = restart.pause()
    open_files.raise_limit()
    try:
        settings = load(Settings)
        logs.configure(settings, "worker")
        tracing.configure(settings, "worker")
        make_data_directory(settings.data_dir)
        lock = FileLock(settings.data_dir / "worker.lock")
        lock.acquire("another worker runs on this data directory", LOCK_PATIENCE)
        remove_scratch(settings.data_dir)
        application = Application(settings, now)
    except (SettingsError, LogError) as error:
        print(visible_lines(f"spendstream worker: {error}"), file=sys.stderr)  # noqa: T201 - a person started it wrongly
        if is_again and isinstance(error, LogUnavailable):
            restart.arm()
            restart.end(EXIT_CRASHED)
        return EXIT_USAGE
    is_supervised = lifeline.watch()
    if settings.broker != "sqlite://":
        if not is_supervised:
            restart.arm()
        return asyncio.run(_run(application))
    checkpointer = Checkpointer(settings.data_dir)
    checkpointer.start()
    code = asyncio.run(_run(application))
    checkpointer.stop()
    return code


async def _run(application: Application) -> int:
    log = get_logger()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    began = time.monotonic()
    app: Any = application.faust
    await app.start()
    if application.stage is not None:
        application.stage.start()
    ended = asyncio.ensure_future(app.wait_until_stopped())
    stopped = asyncio.ensure_future(stop.wait())
    ready = asyncio.ensure_future(app.tables.recovery.completed.wait())
    await asyncio.wait({ended, stopped, ready}, return_when=asyncio.FIRST_COMPLETED)
    if ready.done():
        gc.collect()
        gc.freeze()  # the rows live as long as the process: collections need not walk them
        gc.set_threshold(*COLLECT_AFTER)
        took = round(time.monotonic() - began, 2)
        log.info("worker.ready", seconds=took, partitions=application.partitions, kernel=RUNNING)
        print(json.dumps({"event": "ready", "role": "worker"}), flush=True)  # noqa: T201 - the ready line
        await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not stopped.done():
        log.critical("worker.crashed", error=repr(app.crash_reason))
        # Faust's own shutdown could wait for ever; a restart loses nothing.
        restart.end(EXIT_CRASHED)
    stopping = asyncio.ensure_future(_stop(application))
    await asyncio.wait({stopping}, timeout=STOP_PATIENCE)
    if not stopping.done():
        log.warning("worker.killed", after=STOP_PATIENCE)
        os._exit(0)  # nothing is lost: what could not be written is applied again
    stopping.result()
    log.info("worker.stopped", applied=application.applier.applied)
    return 0


async def _stop(application: Application) -> None:
    """Make durable what was applied, and acknowledge it. Waits while the log cannot be written."""
    await application.applier.finish()
    if application.stage is not None:
        await asyncio.to_thread(application.stage.finish)
    await application.faust.stop()
    await asyncio.to_thread(tracing.finish)


if __name__ == "__main__":
    sys.exit(main())
