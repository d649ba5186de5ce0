"""`spendstream serve`: the API, in one process or several on the same ports, and the worker as child processes of one
supervisor.

A child that ends is restarted, with backoff. When the supervisor ends, in whatever way, its children end within a
second (processor/lifeline.py), and the kernel frees its lock.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

from processor import lifeline
from processor.core.visible import visible
from processor.log import losses
from processor.log.address import LogAddress
from processor.log.data_directory import make_data_directory
from processor.log.embedded.checkpointer import EXIT_BROKEN
from processor.log.file_lock import LOOK, FileLock
from processor.log.following import EXIT_DAMAGED
from processor.structured_log import get_logger
from processor.wall_clock import now
from server.prices import prices_setting
from server.processes import listening_ports, server_address
from server.processes.siblings import VARIABLE, ApiSibling
from server.settings import ServerSettings
from server.tenancy.first_key import ensure_key

STOP_PATIENCE: Final = {"api": 5.0, "worker": 4.0, "query": 3.0, "store": 4.0}
"""Seconds that a child has to drain before it is killed; API and worker stop one after the other, within ten in all,
the others beside them."""

MODULES: Final = {
    "api": ("server", "api"),
    "query": ("server", "query"),
    "worker": ("processor",),
    "store": ("processor.event_store",),
}
"""Role -> what `python -m` runs."""

BESIDE: Final = frozenset({"query", "store"})
"""Roles that nothing waits for: one that cannot start is tried again and again."""

START_PATIENCE: Final = 10.0
"""Seconds for which they wait for the others to be ready."""

FIRST_BACKOFF: Final = 0.1
MAX_BACKOFF: Final = 5.0
STABLE: Final = 20.0
"""Seconds of running after which a child's backoff starts anew."""

EXIT_USAGE: Final = 2

KILLED: Final = "killed from outside: by the kernel where memory ran out (docs/operations.md, Memory)"


class Child:
    """The process of one role, restarted when it ends; `name` is its name in the log."""

    def __init__(self, role: str, environment: Mapping[str, str], lifeline_fd: int, name: str | None = None) -> None:
        self.role = role
        self.on_broken: Callable[[], None] = lambda: None
        """Called when the child has ended because the log's files were lost: no process may continue to use them."""
        self.on_damaged: Callable[[float], None] = lambda began: None
        """Called, with the child's start, when it has ended because of rows that a start of the worker makes anew."""
        self.is_ready_since: float | None = None
        """When the present process printed its ready line (monotonic seconds); None: it has not yet."""
        self.environment = dict(environment)
        self.ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        """The first ready line; `SystemExit` if the child has ended with the exit code for "cannot start"."""
        self._fd = lifeline_fd
        self._process: asyncio.subprocess.Process | None = None
        self._let_go = asyncio.Event()
        self._log = get_logger().bind(child=name or role)

    async def run(self) -> None:
        """Keep the child running until `stop`."""
        backoff = FIRST_BACKOFF
        while not self._let_go.is_set():
            began = time.monotonic()
            code = await self._once()
            if self._let_go.is_set():
                return
            if code == EXIT_USAGE and not self.ready.done() and self.role not in BESIDE:
                self.ready.set_exception(SystemExit(EXIT_USAGE))
                return
            self.is_ready_since = None
            if code == EXIT_BROKEN:
                self.on_broken()
            elif code == EXIT_DAMAGED:
                self.on_damaged(began)
            if time.monotonic() - began > STABLE:
                backoff = FIRST_BACKOFF
            hint = {"hint": KILLED} if code == -signal.SIGKILL else {}
            self._log.error("child.ended", code=code, restart_in=backoff, **hint)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF)

    async def _once(self) -> int:
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *MODULES[self.role],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **self.environment, lifeline.VARIABLE: str(self._fd)},
            pass_fds=(self._fd,),
            preexec_fn=lifeline.tie(),
        )
        began = time.monotonic()
        self._log.info("child.started", pid=process.pid)
        assert process.stdout is not None
        async for line in process.stdout:
            if self._heard(line):
                self._log.info("child.ready", pid=process.pid, seconds=round(time.monotonic() - began, 2))
        return await process.wait()

    def _heard(self, line: bytes) -> bool:
        """Take in what the process has printed; return whether it is the ready line."""
        try:
            said = json.loads(line)
        except ValueError:
            return False
        if not isinstance(said, dict) or said.get("event") != "ready":
            return False
        self.is_ready_since = time.monotonic()
        if not self.ready.done():
            self.ready.set_result(said)
        for door in ("http", "grpc"):  # a restarted child has to listen on the same ports
            if door in said:
                self.environment[f"SPENDSTREAM_{door.upper()}_BIND"] = said[door]
        return True

    def let_go(self) -> None:
        """Do not start the child again."""
        self._let_go.set()

    def kill(self) -> None:
        """Kill the child; `run` restarts it."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        """Stop the child: let it drain for `STOP_PATIENCE`, then kill it."""
        self.let_go()
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_PATIENCE[self.role]):
                await process.wait()
        except TimeoutError:
            self._log.warning("child.killed", after=STOP_PATIENCE[self.role])
            process.kill()


async def run(settings: ServerSettings, environment: Mapping[str, str]) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code. `environment` has the settings for the children."""
    make_data_directory(settings.data_dir)
    lock = FileLock(settings.data_dir / server_address.LOCK)
    lock.acquire(f"a server is running already on {settings.data_dir}: stop it, or name another data directory", LOOK)
    address = LogAddress.of(settings)
    log = address.open(settings.partitions, create=True, upgrade=True)
    address.claim(log.identity, keeps=True)
    losses.check_directory(log)
    made = ensure_key(log, settings.bootstrap_key, now(), make=True)
    log.close()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    environment = {**environment, "SPENDSTREAM_PRICES": prices_setting.keep(settings.prices, settings.data_dir)}
    read_end, write_end = os.pipe()
    with ExitStack() as held:
        apis = await _apis(settings, environment, read_end, held)
        worker = Child("worker", environment, read_end)
        children = [worker, *apis]
        roles = ("store", "query") if settings.event_store else ()
        beside = [Child(role, environment, read_end) for role in roles]
        for child in (*children, *beside):
            child.on_broken = partial(_kill_all, [*children, *beside])
            child.on_damaged = partial(_start_anew, worker)
        tasks = [asyncio.create_task(child.run()) for child in children]
        tasks += [asyncio.create_task(_run_after(children, child)) for child in beside]
        try:
            return await _serve(settings, children, made, stop)
        finally:
            for child in (*children, *beside):  # a signal to the whole process group may have reached them already
                child.let_go()
            stopping = asyncio.gather(*(child.stop() for child in beside))
            await asyncio.gather(*(api.stop() for api in apis))  # first, so that no more events arrive
            await worker.stop()
            await stopping
            for task in tasks:
                task.cancel()
            os.close(write_end)
            os.close(read_end)
            lock.close()


async def _run_after(others: Sequence[Child], child: Child) -> None:
    """Run a child once the others are ready, which it would take the cores from while they start."""
    await asyncio.wait([other.ready for other in others], timeout=START_PATIENCE)
    await child.run()


def _kill_all(children: Sequence[Child]) -> None:
    for child in children:
        child.kill()


def _start_anew(worker: Child, before: float) -> None:
    """Kill the worker if it was ready `before`: only a starting worker makes damaged rows anew."""
    if worker.is_ready_since is not None and worker.is_ready_since < before:
        worker.kill()


async def _apis(settings: ServerSettings, environment: Mapping[str, str], fd: int, held: ExitStack) -> list[Child]:
    """Return the API's processes. Several share two ports, which the supervisor reserves in `held`."""
    if settings.api_processes == 1:
        return [Child("api", environment, fd)]
    binds = {}
    for variable, bind in (
        ("SPENDSTREAM_HTTP_BIND", settings.http_bind),
        ("SPENDSTREAM_GRPC_BIND", settings.grpc_bind),
    ):
        port = await listening_ports.hold(bind)
        held.callback(port.close)
        binds[variable] = port.bind
    siblings = ApiSibling.create_all(settings.data_dir, settings.api_processes)
    return [
        Child("api", {**environment, **binds, VARIABLE: each.variable}, fd, f"api-{each.number}") for each in siblings
    ]


async def _serve(settings: ServerSettings, children: list[Child], made: str | None, stop: asyncio.Event) -> int:
    ready: asyncio.Future[list[dict[str, Any]]] = asyncio.gather(*(child.ready for child in children))
    stopped: asyncio.Future[bool] = asyncio.ensure_future(stop.wait())
    futures: set[asyncio.Future[Any]] = {ready, stopped}
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    if ready.done():
        try:
            said = {name: value for line in ready.result() for name, value in line.items()}
        except SystemExit as error:
            return int(error.code or 1)
        _say(settings, said, made)
        await stopped
    ready.cancel()
    get_logger().info("serve.draining")
    return 0


def _say(settings: ServerSettings, said: Mapping[str, str], made: str | None) -> None:
    scheme = "https" if settings.tls_cert else "http"
    server_address.note(settings.data_dir, scheme, said["http"])
    lines = [
        "spendstream is ready",
        f"  HTTP  {scheme}://{said['http']}",
        f"  gRPC  {said['grpc']}",
        f"  data  {settings.data_dir}",
    ]
    if settings.broker != "sqlite://":
        lines.append(f"  log   {settings.broker}")
    if made is not None:
        lines.append(f"  key   {made}  (project default; shown this once)")
    ready = {"event": "ready", "role": "serve", "http": said["http"], "grpc": said["grpc"]}
    print("\n".join(map(visible, lines)), json.dumps(ready, separators=(",", ":")), sep="\n", flush=True)  # noqa: T201 - the banner
