"""A cluster on this machine: a broker, APIs, workers and an event store, as processes of one program: `make cluster`.

Every process logs under its name, is started again when it ends, and ends with this program. All they keep is in one
directory, `.kafka/cluster`: remove it to begin anew.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from processor import lifeline
from tools.kafka import HOST, Broker
from tools.kafka_jars import HOME, NoKafka, jars, java
from tools.tied_process import NotStarted

PARTITIONS: Final = "4"
FIRST_BACKOFF: Final = 0.5
MAX_BACKOFF: Final = 5.0
STABLE: Final = 20.0
"""Seconds after which a process counts as sound and its backoff starts anew."""

STOP_PATIENCE: Final[Mapping[str, float]] = {"api": 4.0, "worker": 3.0, "store": 3.0}
"""Seconds to drain before it is killed; the APIs first, then workers and stores, then the broker: under ten in all."""

BROKER_PATIENCE: Final = 2.5
EXIT_USAGE: Final = 2
LINE_LIMIT: Final = 4 << 20


def tell(name: str, text: str) -> None:
    print(f"{name:<9}| {text}", file=sys.stderr, flush=True)


class Member:
    """One process of the product, started at once, and again whenever it ends until `stop`."""

    def __init__(self, name: str, role: str, program: Sequence[str], environment: Mapping[str, str], fd: int) -> None:
        self.name = name
        self.role = role
        self.ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        """Its first ready line, or `NotStarted` if it says that it can never start."""
        self._command = [*program, role]
        self._environment = dict(environment) | {lifeline.VARIABLE: str(fd)}
        self._fd = fd
        self._process: asyncio.subprocess.Process | None = None
        self._let_go = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        backoff = FIRST_BACKOFF
        while not self._let_go.is_set():
            began = asyncio.get_running_loop().time()
            code = await self._once()
            if self._let_go.is_set():
                return
            if code == EXIT_USAGE and not self.ready.done():
                self.ready.set_exception(NotStarted(f"{self.name} cannot start: see what it logged"))
                return
            if asyncio.get_running_loop().time() - began > STABLE:
                backoff = FIRST_BACKOFF
            tell(self.name, f"ended with {code}; starting again in {backoff} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._let_go.wait(), backoff)
            backoff = min(2 * backoff, MAX_BACKOFF)

    async def _once(self) -> int:
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            limit=LINE_LIMIT,
            pass_fds=(self._fd,),
            start_new_session=True,  # Ctrl-C is for this program, which stops the others in order
            preexec_fn=lifeline.tie(),
        )
        assert process.stdout is not None
        assert process.stderr is not None
        if self._let_go.is_set():  # while it was being made
            self._send(signal.SIGTERM)
        await asyncio.gather(self._listen(process.stdout), self._pass_on(process.stderr))
        return await process.wait()

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            if not self._is_ready_line(line):
                tell(self.name, line.decode(errors="replace").rstrip())

    async def _pass_on(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            tell(self.name, line.decode(errors="replace").rstrip())

    def _is_ready_line(self, line: bytes) -> bool:
        try:
            said = json.loads(line)
        except ValueError:
            return False
        if not isinstance(said, dict) or said.get("event") != "ready":
            return False
        for door in ("http", "grpc"):  # it must be found again where it was
            if door in said:
                self._environment[f"SPENDSTREAM_{door.upper()}_BIND"] = said[door]
        if self.ready.done():
            tell(self.name, "ready again")
        else:
            self.ready.set_result(said)
        return True

    def _send(self, signum: int) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signum)

    async def stop(self) -> None:
        """Let it drain, then make sure that it is gone."""
        self._let_go.set()
        self._send(signal.SIGTERM)
        _, late = await asyncio.wait({self._task}, timeout=STOP_PATIENCE[self.role])
        if late:
            tell(self.name, f"did not stop within {STOP_PATIENCE[self.role]:g} s: killed")
            self._send(signal.SIGKILL)
            await asyncio.wait({self._task}, timeout=1)


@dataclass(frozen=True)
class Plan:
    """What to start, and where."""

    directory: Path
    program: Sequence[str]
    """The command that takes `api`, `worker` or `store` as its last word."""
    broker: str | None
    """kafka://... of a broker that runs already; with none, one is started."""
    broker_port: int
    http_port: int
    """Of the first API, the next one's follow; 0 takes free ones. The same with gRPC."""
    grpc_port: int
    apis: int
    workers: int
    stores: int

    def environments(self, broker: str, key: str) -> dict[str, tuple[str, dict[str, str]]]:
        """The name of each process of the product -> its role and its environment."""
        shared = {"SPENDSTREAM_PARTITIONS": PARTITIONS, **os.environ}
        shared |= {"SPENDSTREAM_BROKER": broker, "SPENDSTREAM_BOOTSTRAP_KEY": key}
        shared |= {"SPENDSTREAM_STORE_DIR": str(self.directory / "events")}
        if not self.stores:
            shared |= {"SPENDSTREAM_EVENT_STORE": "off"}
        if sys.stderr.isatty():
            shared.setdefault("SPENDSTREAM_LOG_FORMAT", "console")
        made: dict[str, tuple[str, dict[str, str]]] = {}
        for role, count in (("worker", self.workers), ("store", self.stores), ("api", self.apis)):
            for index in range(count):
                name = f"{role}-{index + 1}"
                made[name] = (role, shared | {"SPENDSTREAM_DATA_DIR": str(self.directory / name)})
                if role == "api":
                    for door, first in (("HTTP", self.http_port), ("GRPC", self.grpc_port)):
                        made[name][1][f"SPENDSTREAM_{door}_BIND"] = f"{HOST}:{first + index if first else 0}"
        return made


def bootstrap_key(directory: Path) -> str:
    """The key of this cluster, made by its first start."""
    path = directory / "key"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(f"lqt_{secrets.token_hex(32)}\n")
    return path.read_text().strip()


async def run(plan: Plan) -> int:
    """Run the cluster until SIGTERM or SIGINT; returns the exit code."""
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    plan.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = bootstrap_key(plan.directory)
    broker = None if plan.broker else Broker(plan.directory / "broker", plan.broker_port)
    read_end, write_end = os.pipe()
    members: list[Member] = []
    keeper: asyncio.Task[None] | None = None
    try:
        if broker is not None:
            tell("broker", "starting")
            await asyncio.to_thread(broker.start)
            keeper = asyncio.create_task(keep(broker))
        address = broker.url if broker is not None else str(plan.broker)
        for name, (role, environment) in plan.environments(address, key).items():
            members.append(Member(name, role, plan.program, environment, read_end))
        return await _serve(members, address, key, stopping)
    except NotStarted as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        for roles in ({"api"}, {"worker", "store"}):  # first no more events come in, then these have the last of them
            await asyncio.gather(*(member.stop() for member in members if member.role in roles))
        if keeper is not None:
            keeper.cancel()
        if broker is not None:
            await asyncio.to_thread(broker.stop, BROKER_PATIENCE)
        os.close(write_end)
        os.close(read_end)


async def keep(broker: Broker) -> None:
    """Start the broker again whenever it ends."""
    backoff = FIRST_BACKOFF
    while True:
        await asyncio.sleep(backoff)
        if broker.is_running:
            backoff = FIRST_BACKOFF
            continue
        tell("broker", f"ended; starting again (its log: {broker.log_path})")
        try:
            await asyncio.to_thread(broker.start)
            tell("broker", "ready again")
        except NotStarted as error:
            tell("broker", str(error))
            backoff = min(2 * backoff, MAX_BACKOFF)


async def _serve(members: list[Member], broker: str, key: str, stopping: asyncio.Event) -> int:
    ready: asyncio.Future[list[dict[str, Any]]] = asyncio.gather(*(member.ready for member in members))
    stopped = asyncio.ensure_future(stopping.wait())
    futures: set[asyncio.Future[Any]] = {ready, stopped}
    while not (await asyncio.wait(futures, timeout=10, return_when=asyncio.FIRST_COMPLETED))[0]:
        tell("cluster", f"waiting for {', '.join(member.name for member in members if not member.ready.done())}")
    if ready.done():
        said = dict(zip((member.name for member in members), ready.result(), strict=True))
        print(banner(said, broker, key), flush=True)
        await stopped
    ready.cancel()
    stopped.cancel()
    tell("cluster", "stopping")
    return 0


def banner(said: Mapping[str, Mapping[str, str]], broker: str, key: str) -> str:
    """The addresses as a table, an example, and all of it once more as one ready line of JSON."""
    lines = ["", "spendstream cluster is ready", f"  {'broker':<10}{broker}"]
    for name, line in sorted(said.items()):
        where = f"http://{line['http']}   gRPC {line['grpc']}" if "http" in line else ""
        lines.append(f"  {name:<10}{where}".rstrip())
    lines.append(f"  {'key':<10}{key}  (project default)")
    first = next((line["http"] for name, line in sorted(said.items()) if "http" in line), None)
    if first:
        lines += ["", f"  curl http://{first}/v1/users -H 'x-api-key: {key}'"]
    apis = {name: {door: line[door] for door in ("http", "grpc")} for name, line in said.items() if "http" in line}
    ready = {"event": "ready", "role": "cluster", "broker": broker, "apis": apis, "key": key}
    return "\n".join([*lines, "", json.dumps(ready, separators=(",", ":"))])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.cluster", description="A cluster on this machine.")
    parser.add_argument("--dir", type=Path, default=HOME / "cluster", help=f"all it keeps ({HOME / 'cluster'})")
    parser.add_argument("--broker", help="kafka://host:port of a broker that runs already, instead of one more")
    parser.add_argument("--broker-port", type=int, default=9092, help="0 takes a free one (9092)")
    parser.add_argument("--http-port", type=int, default=8080, help="of the first API; 0 takes free ones (8080)")
    parser.add_argument("--grpc-port", type=int, default=50051, help="of the first API; 0 takes free ones (50051)")
    parser.add_argument("--apis", type=int, default=2, help="how many (2)")
    parser.add_argument("--workers", type=int, default=2, help="how many (2)")
    parser.add_argument("--stores", type=int, default=1, help="how many; 0: no event store (1)")
    parser.add_argument("--program", default=shlex.join([sys.executable, "-m", "server"]), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    plan = Plan(
        directory=given.dir.absolute(),
        program=shlex.split(given.program),
        broker=given.broker,
        broker_port=given.broker_port,
        http_port=given.http_port,
        grpc_port=given.grpc_port,
        apis=given.apis,
        workers=given.workers,
        stores=given.stores,
    )
    try:
        if plan.broker is None:
            java()
            jars()
        return asyncio.run(run(plan))
    except KeyboardInterrupt:  # while the jars were on their way
        return 130
    except NoKafka as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
