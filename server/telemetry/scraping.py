"""`/metrics` of several API processes on one port: the one that is scraped asks the others and shows all of them.

Each sample has the label `api`, the number of the process; nothing is summed here. For this each process listens on a
loopback port of its own, noted in the shared table `doors`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Final

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from server.processes.shared_table import Busy
from server.processes.siblings import DOORS, ApiSibling
from server.telemetry import exposition

LABEL: Final = "api"
PATIENCE: Final = 2.0
"""Seconds that another process has to answer, or it is left out."""

_ROW: Final = b"metrics"
_FOR_EVER: Final = 2**62


class Scraping:
    """The metrics of several API processes. For one event loop."""

    def __init__(self, sibling: ApiSibling) -> None:
        self._sibling = sibling
        self._table = sibling.table(DOORS)

    @contextlib.asynccontextmanager
    async def door(self, registry: CollectorRegistry) -> AsyncIterator[None]:
        """Answer the other processes on a loopback port while the block runs. Raises `OSError`, `Busy`."""
        app = web.Application()
        exposition.add_routes(app, registry)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self._note(runner.addresses[0][1])
            yield
        finally:
            await runner.cleanup()
            self._table.close()

    def _note(self, port: int) -> None:
        with self._table:
            row = self._table.find(_ROW)
            if row is None:
                row = self._table.add(_ROW, [_FOR_EVER, *(0 for _ in range(self._sibling.count))], 0)
            self._table.put(row, 1 + self._sibling.number, port)

    def _ports(self) -> dict[int, int]:
        try:
            with self._table:
                row = self._table.find(_ROW)
                ports = [] if row is None else self._table.words(row)[1:]
        except Busy:
            return {}
        return {number: port for number, port in enumerate(ports) if port and number != self._sibling.number}

    async def gather(self, registry: CollectorRegistry) -> CollectorRegistry:
        """Return the metrics of all processes that answer; those of this one are in `registry`."""
        others = self._ports()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
            texts = await asyncio.gather(*(_ask(session, port) for port in others.values()))
        said = dict(zip(others, texts, strict=True)) | {self._sibling.number: generate_latest(registry).decode()}
        found = CollectorRegistry(auto_describe=False)
        found.register(
            _Joined({number: text for number, text in said.items() if text is not None}, self._sibling.count)
        )
        return found


async def _ask(session: aiohttp.ClientSession, port: int) -> str | None:
    try:
        async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
            return await response.text()
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None


class _Joined(Collector):
    """The metric families of several scrapes, each once, with the samples of all."""

    def __init__(self, texts: dict[int, str], count: int) -> None:
        self._texts = texts
        self._count = count

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the collector is made for one answer."""
        return ()

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for number, text in sorted(self._texts.items()):
            for family in text_string_to_metric_families(text):
                joined = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                joined.samples += [
                    sample._replace(labels=dict(sample.labels) | {LABEL: str(number)}) for sample in family.samples
                ]
        yield from families.values()
        answered = GaugeMetricFamily("spendstream_api_answered", "1 if the API process is in here", labels=[LABEL])
        for number in range(self._count):
            answered.add_metric([str(number)], int(number in self._texts))
        yield answered
