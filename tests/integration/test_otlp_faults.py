"""Real OTLP clients against a server that is killed, refuses and loses answers: what they call counts once.

`OTLP_KILLS` is how often the server is killed for each protocol (default 4).
"""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.support.model_api import ModelApi
from tests.support.priced_projects import Project, client_of, priced_server, sums_of
from tools.collector import Collector, exporting
from tools.otlp_clients import javascript_client, python_client
from tools.record_spans import client_environment, run_client

pytestmark = [pytest.mark.slow, pytest.mark.otlp_clients, pytest.mark.timeout(300)]

KILLS: Final = int(os.environ.get("OTLP_KILLS", "4"))
BATCH: Final = 8
"""Spans of a request, so that there are many requests."""
PATIENT: Final = {"OTEL_EXPORTER_OTLP_TIMEOUT": "120", "OTEL_BSP_SCHEDULE_DELAY": "100"}


def plan(kills: int) -> Iterator[Fault]:
    """Refusals and lost answers between kills at both sides of the server's answer, `kills` in all; then none."""
    around: list[Fault] = ["kill-before-answer", "refuse-429", "kill-after-answer", "refuse-503", "lose-answer"]
    left = kills
    for fault in itertools.cycle(around):
        if fault.startswith("kill"):
            if not left:
                return
            left -= 1
        yield fault


def prompts(kills: int) -> list[str]:
    """Enough calls that each fault of `plan(kills)` meets a request of its own, each with tokens of its own."""
    requests = kills * 5 // 2 + 4
    return [f"Say hello: in={1000 + number} cached={number} out={number + 1}" for number in range(requests * BATCH)]


def kills_of(proxy: FaultyProxy) -> int:
    return proxy.met["kill-before-answer"] + proxy.met["kill-after-answer"]


FAST: Final = {**PATIENT, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": str(BATCH)}
PROTOCOLS: Final = ("http/protobuf", "http/json", "grpc")


@pytest.mark.timeout(300 + 20 * KILLS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_every_call_counts_once_over_kills_refusals_and_lost_answers(
    tmp_path: Path, models: ModelApi, protocol: str
) -> None:
    with priced_server(tmp_path) as running:
        project = Project(running, "faults")
        faults = faulty_proxy(running.http, running.grpc, plan(KILLS), lambda: running.kill("api"))
        async with faults as proxy:
            endpoint = f"http://{proxy.grpc}" if protocol == "grpc" else proxy.http
            given = {**FAST, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
            command = [*python_client(), "many-openai-calls"]
            if protocol == "http/json":
                command = [*javascript_client(), "many-openai-calls"]
                given["OTEL_EXPORTER_OTLP_TIMEOUT"] = "120000"  # milliseconds there
            said = await run_client(
                [*command, *prompts(KILLS)], client_of(project, models, endpoint, **given), 200 + 15 * KILLS
            )
        assert kills_of(proxy) == KILLS, said
        assert {"refuse-429", "refuse-503", "lose-answer"} <= set(proxy.met) or KILLS < 3
        expected = sums_of(models.calls)
        assert expected.requests == len(prompts(KILLS))
        assert await project.sums(expected) == expected, said


@asynccontextmanager
async def collecting(directory: Path, url: str, project: Project, *, over_grpc: bool) -> AsyncIterator[Collector]:
    collector = Collector(directory, exporting(url, project.key, over_grpc=over_grpc))
    try:
        yield await asyncio.to_thread(collector.start)
    finally:
        collector.kill()


@pytest.mark.collector
@pytest.mark.timeout(300 + 20 * KILLS)
@pytest.mark.parametrize("over_grpc", [False, True], ids=["http", "grpc"])
async def test_every_call_counts_once_through_a_collector_that_is_killed_beside_the_server(
    tmp_path: Path, models: ModelApi, over_grpc: bool
) -> None:
    with priced_server(tmp_path) as running:
        project = Project(running, "collector")
        faults = faulty_proxy(running.http, running.grpc, plan(KILLS), lambda: running.kill("api"))
        async with faults as proxy:
            url = proxy.grpc if over_grpc else proxy.http
            async with collecting(tmp_path / "collector", url, project, over_grpc=over_grpc) as collector:
                given = {**FAST, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc" if over_grpc else "http/protobuf"}
                endpoint = f"http://{collector.grpc}" if over_grpc else collector.http
                # The key is the Collector's: the application needs none.
                variables = client_environment(models, endpoint, given)
                client = asyncio.create_task(
                    run_client([*python_client(), "many-openai-calls", *prompts(KILLS)], variables, 200 + 15 * KILLS)
                )
                for _ in range(max(2, KILLS // 2)):
                    await asyncio.sleep(1.5)
                    collector.kill()
                    await asyncio.to_thread(collector.start)
                said = await client
                expected = sums_of(models.calls)
                assert await project.sums(expected, 60 + 5 * KILLS) == expected, said + collector.log()[-2000:]
        assert kills_of(proxy) == KILLS
