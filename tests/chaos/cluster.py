"""A cluster on one machine: a real broker, and API and worker processes that are started again when they end."""

import asyncio
import contextlib
import random
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from processor.log.kafka.config import KafkaAccess
from processor.log.topics import PREFIX
from tests.support.server import KEY, Server, run_cli
from tools.kafka import Broker

PARTITIONS: Final = 4
WATCH: Final = 0.2
"""Seconds between two looks at which process has ended."""


class Cluster:
    """A broker, two APIs and two workers, each with a data directory of its own. For clients it is one server.

    On a broker that is `shared` it has the names below `prefix` to itself, and leaves that running.
    """

    key = KEY

    def __init__(
        self,
        directory: Path,
        rng: random.Random,
        apis: int = 2,
        workers: int = 2,
        shared: Broker | None = None,
        prefix: str = PREFIX,
    ) -> None:
        self.directory = directory
        self._rng = rng
        self._is_shared = shared is not None
        self.broker = shared or Broker(directory / "broker")
        self.access = KafkaAccess(self.broker.bootstrap, prefix=prefix)
        self.log: Final[dict[str, Any]] = {"broker": self.broker.url, "kafka_prefix": prefix}
        """The settings that say where the log is."""
        self.apis = [self._server("api", number) for number in range(apis)]
        self.workers = [self._server("worker", number) for number in range(workers)]
        self.held: set[Server] = set()
        """Those that are not to be started again when they end."""
        self._watching: asyncio.Task[None] | None = None
        self.restarts = 0

    def _server(self, role: str, number: int, **settings: Any) -> Server:
        return Server(
            self.directory / f"{role}-{number}",
            role,
            partitions=PARTITIONS,
            max_lag=5,
            **self.log,
            **settings,
        )

    def another(self, role: str) -> Server:
        """One more process of a role, started; it counts among the others."""
        servers = self.apis if role == "api" else self.workers
        made = self._server(role, len(servers))
        made.launch()
        servers.append(made)  # not before it runs: `watch` would start it a second time
        return made

    # --- what clients see -------------------------------------------------------------------------------------------

    @property
    def http(self) -> str:
        return self._any().http

    @property
    def grpc(self) -> str:
        return self._any().grpc

    def _any(self) -> Server:
        return self._rng.choice([api for api in self.apis if api.http])

    def cli(self, *arguments: str, timeout: float = 60.0) -> "subprocess.CompletedProcess[str]":
        return run_cli(self.directory / "cli", *arguments, timeout=timeout, **self.log)

    # --- life -------------------------------------------------------------------------------------------------------

    @property
    def everyone(self) -> list[Server]:
        return [*self.apis, *self.workers]

    def start(self) -> None:
        """Start all of it and wait until it is ready."""
        if not self._is_shared:
            self.broker.start()
        for server in self.everyone:
            server.launch()
        for server in self.everyone:
            server.wait_ready(60)

    async def watch(self) -> None:
        """Start again what has ended by itself, as a service manager does."""
        while True:
            await asyncio.sleep(WATCH)
            for server in self.everyone:
                if server not in self.held and not server.is_running:
                    self.restarts += 1
                    await asyncio.to_thread(server.launch)

    def stop(self) -> list[str]:
        """SIGTERM to all; returns what went wrong."""
        wrong = []
        for server in self.everyone:
            if server.is_running:
                code, seconds = server.stop()
                if code != 0 or seconds > 10:
                    wrong.append(f"{server.data_dir.name}: SIGTERM: exit code {code} after {seconds:.1f} s")
        return wrong

    def kill(self) -> None:
        """SIGKILL to all of it, but for a broker that is shared."""
        for server in self.everyone:
            with contextlib.suppress(Exception):
                server.kill_all()
        if not self._is_shared:
            self.broker.kill()

    def tail(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- {server.data_dir.name}\n{server.log()[-1500:]}" for server in self.everyone)


@asynccontextmanager
async def cluster(directory: Path, rng: random.Random, **options: Any) -> AsyncIterator[Cluster]:
    """A cluster for the length of the block, see `Cluster` for the options; no process of it is left after."""
    made = Cluster(directory, rng, **options)
    (directory / "cli").mkdir(parents=True, exist_ok=True)
    watching: asyncio.Task[None] | None = None
    try:
        await asyncio.to_thread(made.start)
        watching = asyncio.create_task(made.watch())
        yield made
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        await asyncio.to_thread(made.kill)


def measure(began: float) -> float:
    """Seconds since `began`, by the monotonic clock."""
    return time.monotonic() - began
