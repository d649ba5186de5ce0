"""A server with prices of its own, projects on it, and what their tables are to say after calls to models."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

import aiohttp

from tests.support.model_api import Call, ModelApi
from tests.support.patience import PROCESS_PATIENCE
from tests.support.server import Server, server
from tools.record_spans import client_environment

MICRO: Final = {
    "gpt-4o-2024-08-06": (2_500_000, 1_250_000, 0, 0, 10_000_000),
    "o4-mini-2025-04-16": (1_100_000, 275_000, 0, 0, 4_400_000),
    "claude-sonnet-4-5": (3_000_000, 300_000, 3_750_000, 6_000_000, 15_000_000),
    "gemini-2.5-flash": (300_000, 75_000, 0, 0, 2_500_000),
    "text-embedding-3-small": (20_000, 20_000, 0, 0, 0),
}
"""Picodollars a token: input, cached, written to the cache, written for an hour, output."""
PRICES: Final = "".join(
    f'[[price]]\nmodel = "{model}"\ninput = {into / 1e6}\ncached = {cached / 1e6}\ncache_write = {write / 1e6}\n'
    f"cache_write_1h = {hourly / 1e6}\noutput = {out / 1e6}\n\n"
    for model, (into, cached, write, hourly, out) in MICRO.items()
)


@dataclass(frozen=True)
class Sums:
    """What a project's tables say, and what they should."""

    requests: int
    errors: int
    unpriced: int
    input_tokens: int
    output_tokens: int
    picodollars: int


def cost_of(call: Call) -> int:
    """Picodollars, by hand."""
    into, cached, write, hourly, out = MICRO[call.model]
    plain = call.input_tokens - call.cached_tokens - call.cache_write_tokens
    for_minutes = call.cache_write_tokens - call.cache_write_1h_tokens
    parts = plain * into + call.cached_tokens * cached + for_minutes * write + call.cache_write_1h_tokens * hourly
    return parts + call.output_tokens * out


def sums_of(calls: Sequence[Call]) -> Sums:
    """What is to be counted: one request a call; one that failed has no tokens, and so no price."""
    good = [call for call in calls if call.status == "success"]
    failed = len(calls) - len(good)
    return Sums(
        len(calls),
        failed,
        failed,
        sum(call.input_tokens for call in good),
        sum(call.output_tokens for call in good),
        sum(map(cost_of, good)),
    )


class Project:
    """A project of its own on a running server."""

    def __init__(self, running: Server, name: str) -> None:
        self.key: str = running.create_key("--project", name)["key"]
        self.running = running

    @property
    def headers(self) -> dict[str, str]:
        return {"x-api-key": self.key}

    async def sums(self, expected: Sums, patience: float = PROCESS_PATIENCE) -> Sums:
        """What the tables say once they have all requests, or after a while."""
        said = await self._sums()
        deadline = asyncio.get_running_loop().time() + patience
        while said.requests < expected.requests and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.1)
            said = await self._sums()
        await asyncio.sleep(0.3)  # longer than a flush: one too many must show
        return await self._sums()

    async def providers(self) -> set[str]:
        """Of the events of the recordings' day."""
        url = f"http://{self.running.http}/v1/costs?start=2026-04-20&end=2026-04-21"
        async with aiohttp.ClientSession(headers=self.headers) as session, session.get(url) as answer:
            return {row["provider"] for row in (await answer.json())["byModel"]}

    async def _sums(self) -> Sums:
        async with aiohttp.ClientSession(headers=self.headers) as session:
            try:
                async with session.get(f"http://{self.running.http}/v1/users") as answer:
                    text = await answer.text()
                    is_there = answer.status == 200
            except aiohttp.ClientError:  # it is being started
                is_there, text = False, ""
        if not is_there:
            return Sums(-1, 0, 0, 0, 0, 0)
        total = json.loads(text, parse_float=Decimal)["total"]
        return Sums(
            total["requests"],
            total["errors"],
            total["unpriced"],
            total["input_tokens"],
            total["output_tokens"],
            int(Decimal(total["cost_usd"]) * 10**12),
        )


def priced_server(directory: Path) -> AbstractContextManager[Server]:
    """A server below `directory` that prices calls by `MICRO`."""
    prices = directory / "tests.toml"
    prices.write_text(PRICES)
    return server(directory / "data", prices=prices)


def client_of(project: Project, models: ModelApi, endpoint: str, **given: str) -> dict[str, str]:
    """The environment of a client: two variables, and what a test adds."""
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": f"x-api-key={project.key}"}
    return client_environment(models, endpoint, {**headers, **given})
