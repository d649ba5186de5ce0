"""The row `otlp`: real OTLP clients over each protocol, and through a Collector, while what they send to fails.

Between them and the server stands a proxy (`tests.support.faulty_proxy`): each new request meets the next fault of a
plan, a refusal, a lost answer, or a kill of the API before or after its answer. What was called counts once, to the
picodollar. Of a Collector between them it is killed, too, and started again.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.chaos.faults import CannotRun
from tests.chaos.report import Report
from tests.support.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.support.model_api import ModelApi, model_api
from tests.support.priced_projects import Project, Sums, client_of, priced_server, sums_of
from tools.collector import Collector, NoCollector, binary, exporting
from tools.otlp_clients import NoClients, javascript_client, python_client
from tools.record_spans import client_environment, run_client

TITLE: Final = "real OTLP clients over HTTP (protobuf, JSON), gRPC, a Collector: kills around the answer, 429, 503"
DIRECT: Final = ("http/protobuf", "http/json", "grpc")
COLLECTED: Final = ("collector, http", "collector, grpc")
WIRES: Final = (*DIRECT, *COLLECTED)
BATCH: Final = 8
"""Spans of a request, so that there are many requests."""
PATIENT: Final = {
    "OTEL_EXPORTER_OTLP_TIMEOUT": "120",
    "OTEL_BSP_SCHEDULE_DELAY": "100",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": str(BATCH),
}
AROUND: Final[tuple[Fault, ...]] = (
    "kill-before-answer",
    "refuse-429",
    "kill-after-answer",
    "refuse-503",
    "lose-answer",
)
COLLECTOR_LIFE: Final = 1.5
"""Seconds."""


@dataclass
class Outcome:
    """What came of one protocol."""

    called: Sums
    counted: Sums
    met: Counter[Fault]
    said: str
    """By the client, and by the Collector."""

    @property
    def kills(self) -> int:
        """Of the API."""
        return self.met["kill-before-answer"] + self.met["kill-after-answer"]


def plan(kills: int) -> Iterator[Fault]:
    """Refusals and lost answers between kills at both sides of the server's answer, `kills` in all; then none."""
    left = kills
    for fault in itertools.cycle(AROUND):
        if fault.startswith("kill"):
            if not left:
                return
            left -= 1
        yield fault


def prompts(kills: int) -> list[str]:
    """Enough calls that each fault of `plan(kills)` meets a request of its own, each with tokens of its own."""
    requests = kills * 5 // 2 + 4
    return [f"Say hello: in={1000 + number} cached={number} out={number + 1}" for number in range(requests * BATCH)]


async def run_wire(wire: str, kills: int, directory: Path, models: ModelApi) -> Outcome:
    """Run one protocol. Raises `NoClients`, `NoCollector`, and `RuntimeError` for a client that fails."""
    with priced_server(directory) as running:
        project = Project(running, "faults")
        faults = faulty_proxy(running.http, running.grpc, plan(kills), lambda: running.kill("api"))
        async with faults as proxy:
            run = _collected if wire in COLLECTED else _direct
            said = await run(wire, kills, directory / "collector", models, project, proxy)
            called = sums_of(models.calls)
            assert called.requests == len(prompts(kills))
            counted = await project.sums(called, 60 + 5 * kills if wire in COLLECTED else 10)
    return Outcome(called, counted, proxy.met, said)


def _patience(kills: int) -> float:
    return 200 + 15 * kills


async def _direct(
    wire: str, kills: int, directory: Path, models: ModelApi, project: Project, proxy: FaultyProxy
) -> str:
    endpoint = f"http://{proxy.grpc}" if wire == "grpc" else proxy.http
    given = {**PATIENT, "OTEL_EXPORTER_OTLP_PROTOCOL": wire}
    client = python_client
    if wire == "http/json":
        client = javascript_client
        given["OTEL_EXPORTER_OTLP_TIMEOUT"] = "120000"  # milliseconds there
    command = [*client(), "many-openai-calls", *prompts(kills)]
    return await run_client(command, client_of(project, models, endpoint, **given), _patience(kills))


async def _collected(
    wire: str, kills: int, directory: Path, models: ModelApi, project: Project, proxy: FaultyProxy
) -> str:
    over_grpc = wire.endswith("grpc")
    url = proxy.grpc if over_grpc else proxy.http
    async with _collecting(directory, url, project, over_grpc=over_grpc) as collector:
        given = {**PATIENT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc" if over_grpc else "http/protobuf"}
        endpoint = f"http://{collector.grpc}" if over_grpc else collector.http
        variables = client_environment(models, endpoint, given)  # the key is the Collector's
        command = [*python_client(), "many-openai-calls", *prompts(kills)]
        client = asyncio.create_task(run_client(command, variables, _patience(kills)))
        for _ in range(max(2, kills // 2)):
            await asyncio.sleep(COLLECTOR_LIFE)
            collector.kill()
            await asyncio.to_thread(collector.start)
        said = await client
        expected = sums_of(models.calls)
        await project.sums(expected, 60 + 5 * kills)  # it is to deliver all it has before it goes
        return said + collector.log()[-2000:]


@asynccontextmanager
async def _collecting(directory: Path, url: str, project: Project, *, over_grpc: bool) -> AsyncIterator[Collector]:
    collector = Collector(directory, exporting(url, project.key, over_grpc=over_grpc))
    try:
        yield await asyncio.to_thread(collector.start)
    finally:
        collector.kill()


async def run_otlp(*, seed: int, kills: int, directory: Path, say: Callable[[str], None] = lambda _: None) -> Report:
    """Run every protocol with so many kills of the API each. Raises `CannotRun` where there are no clients."""
    report, began = Report("otlp", seed), time.monotonic()
    try:
        for prepare in (python_client, javascript_client, binary):
            await asyncio.to_thread(prepare)
    except (NoClients, NoCollector) as error:
        raise CannotRun(str(error)) from None
    for wire in WIRES:
        say(wire)
        path = directory / wire.replace("/", "-").replace(", ", "-")
        path.mkdir(parents=True)
        async with model_api() as models:
            outcome = await run_wire(wire, kills, path, models)
        report.kills += outcome.kills
        report.events += outcome.called.requests
        report.acknowledged += outcome.counted.requests
        report.retries += outcome.met.total() - outcome.met["none"]
        if outcome.counted != outcome.called:
            report.differences.append(f"{wire}: {outcome.counted} instead of {outcome.called}")
        if outcome.kills != kills:
            report.differences.append(f"{wire}: {outcome.kills} kills instead of {kills}")
    report.seconds = time.monotonic() - began
    return report
