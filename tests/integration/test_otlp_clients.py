"""Real OTLP clients against a running server: what they call counts once, with its cost, whatever fails on the way.

The models are a stand-in on this machine, so it is known what was called and what it costs. `OTLP_KILLS` is how often
the server is killed for each protocol (default 4).
"""

import asyncio
import itertools
import json
import os
import re
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import aiohttp
import grpc
import pytest
import yaml
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.faulty_proxy import EXPORT, Fault, faulty_proxy
from tests.support.model_api import TEXT, Call, ModelApi, model_api
from tests.support.otlp_receiver import JsonObject, with_binary_ids
from tests.support.server import Server, server, wait_until
from tools.collector import Collector, exporting
from tools.otlp_clients import ROOT, javascript_client, python_client
from tools.record_spans import RECORDINGS, SPANS, Recording, client_environment, run_client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KILLS: Final = int(os.environ.get("OTLP_KILLS", "4"))
BATCH: Final = 8
"""Spans of a request while faults are injected, so that there are many requests."""
PATIENT: Final = {"OTEL_EXPORTER_OTLP_TIMEOUT": "120", "OTEL_BSP_SCHEDULE_DELAY": "100"}
PROTOBUF: Final = "application/x-protobuf"

MICRO: Final = {
    "gpt-4o-2024-08-06": (2_500_000, 1_250_000, 0, 10_000_000),
    "o4-mini-2025-04-16": (1_100_000, 275_000, 0, 4_400_000),
    "claude-sonnet-4-5": (3_000_000, 300_000, 3_750_000, 15_000_000),
    "gemini-2.5-flash": (300_000, 75_000, 0, 2_500_000),
    "text-embedding-3-small": (20_000, 20_000, 0, 0),
}
"""Picodollars a token: input, cached, written to the cache, output."""
PRICES: Final = "".join(
    f'[[price]]\nmodel = "{model}"\ninput = {into / 1e6}\ncached = {cached / 1e6}\ncache_write = {write / 1e6}\n'
    f"output = {out / 1e6}\n\n"
    for model, (into, cached, write, out) in MICRO.items()
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
    into, cached, write, out = MICRO[call.model]
    plain = call.input_tokens - call.cached_tokens - call.cache_write_tokens
    parts = plain * into + call.cached_tokens * cached + call.cache_write_tokens * write
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
        made = running.cli("keys", "create", "--project", name, "--json")
        assert made.returncode == 0, made.stderr
        self.key: str = json.loads(made.stdout)["key"]
        self.running = running
        wait_until(self._is_known, 10)  # each API process reads a new key within a second

    def _is_known(self) -> bool:
        asked = urllib.request.Request(f"http://{self.running.http}/v1/quota", headers=self.headers)
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    @property
    def headers(self) -> dict[str, str]:
        return {"x-api-key": self.key}

    async def sums(self, expected: Sums, patience: float = 6.0) -> Sums:
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


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with prices of its own, for all tests that do not kill it."""
    with priced_server(tmp_path_factory.mktemp("otlp")) as made:
        yield made


def priced_server(directory: Path) -> Any:
    prices = directory / "tests.toml"
    prices.write_text(PRICES)
    return server(directory / "data", prices=prices)


@pytest.fixture
async def models() -> AsyncIterator[ModelApi]:
    async with model_api() as made:
        yield made


def client_of(project: Project, models: ModelApi, endpoint: str, **given: str) -> dict[str, str]:
    """The environment of a client: two variables, and what a test adds."""
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": f"x-api-key={project.key}"}
    return client_environment(models, endpoint, {**headers, **given})


# --- what was recorded ----------------------------------------------------------------------------------------------

RECORDED: Final = sorted(path.name.removesuffix(".calls.json") for path in SPANS.glob("*.calls.json"))
ODD: Final = {
    # One output token too many in each of two streamed answers, and no span of a streamed call that was refused.
    "openllmetry-anthropic": Sums(-1, -1, -1, 0, 2, 2 * 15_000_000),
    # It does not report cached tokens: they are priced as if they were not, in two answers.
    "otel-openai-v2": Sums(0, 0, 0, 0, 0, 2 * 1024 * (1_100_000 - 275_000)),
}
"""What a library adds to the truth by what it does not report, or reports wrongly."""


def expected_of(name: str, calls: Sequence[Call]) -> Sums:
    """What a library reports of these calls."""
    truth = sums_of(calls)
    for odd, more in ODD.items():
        if name.startswith(odd):
            return Sums(*(getattr(truth, each) + getattr(more, each) for each in Sums.__dataclass_fields__))
    return truth


@pytest.mark.parametrize("name", [name for name in RECORDED if "-and-" not in name])
async def test_what_was_recorded_counts_as_the_calls_once_over_all_protocols(running: Server, name: str) -> None:
    body: JsonObject = json.loads((SPANS / f"{name}.json").read_text())
    calls = [Call(**each) for each in json.loads((SPANS / f"{name}.calls.json").read_text())]
    project = Project(running, f"recorded-{name}")
    for send in (post_json, post_protobuf, export_grpc):
        await send(project, body)
        assert await project.sums(expected_of(name, calls)) == expected_of(name, calls), send.__name__
    assert await project.providers() == {call.provider for call in calls}


@pytest.mark.parametrize("name", [name for name in RECORDED if "-and-" in name])
async def test_two_layers_that_report_one_call_in_two_traces_are_two_calls(running: Server, name: str) -> None:
    """What the guide warns of: nothing in such spans says that they are of one call."""
    body: JsonObject = json.loads((SPANS / f"{name}.json").read_text())
    calls = [Call(**each) for each in json.loads((SPANS / f"{name}.calls.json").read_text())]
    # LangChain's spans are apart from all of OpenAI's; OpenInference's of Anthropic from those of streamed calls.
    apart = [call for call in calls if call.stream or "langchain" in name]
    project = Project(running, f"recorded-{name}")
    await post_json(project, body)
    assert await project.sums(sums_of([*calls, *apart])) == sums_of([*calls, *apart])


async def post_json(project: Project, body: JsonObject) -> None:
    headers = {**project.headers, "Content-Type": "application/json"}
    await post(project, json.dumps(body).encode(), headers)


async def post_protobuf(project: Project, body: JsonObject) -> None:
    headers = {**project.headers, "Content-Type": PROTOBUF}
    await post(project, protobuf_of(body), headers)


async def post(project: Project, body: bytes, headers: dict[str, str]) -> None:
    url = f"http://{project.running.http}/v1/traces"
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as answer:
        text = await answer.text(errors="replace")
    assert answer.status == 200, text
    assert "partial" not in text.lower(), text


async def export_grpc(project: Project, body: JsonObject) -> None:
    async with grpc.aio.insecure_channel(project.running.grpc) as channel:
        metadata = [("x-api-key", project.key)]
        export: Any = channel.unary_unary(EXPORT)
        answer = await export(protobuf_of(body), metadata=metadata, timeout=30)
    assert answer == b"", answer


def protobuf_of(body: JsonObject) -> bytes:
    message: bytes = ParseDict(with_binary_ids(body), ExportTraceServiceRequest()).SerializeToString()
    return message


# --- what is sent now -----------------------------------------------------------------------------------------------

NAMED: Final = (
    "otel-openai-v2",
    "otel-genai-openai",
    "openinference-openai",
    "openinference-anthropic",
    "traceloop-sdk",
    "vercel-ai",
)
EVERY: Final = [each for each in RECORDINGS if "-and-" not in each.name]
LIVE: Final = EVERY if os.environ.get("OTLP_CLIENTS") == "all" else [each for each in EVERY if each.name in NAMED]


@pytest.mark.otlp_clients
@pytest.mark.parametrize("recording", LIVE, ids=lambda recording: recording.name)
async def test_calls_of_an_instrumented_application_count_once_with_their_cost(
    running: Server, models: ModelApi, recording: Recording
) -> None:
    project = Project(running, f"live-{recording.name}")
    variables = client_of(project, models, f"http://{running.http}", **recording.variables)
    said = await run_client([*recording.command(), recording.program], variables)
    assert await project.sums(sums_of(models.calls)) == expected_of(recording.name, models.calls), said


# --- the guide ------------------------------------------------------------------------------------------------------

GUIDE: Final = (ROOT / "docs" / "guides" / "opentelemetry.md").read_text()
TRACING, *PROGRAMS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
(JAVASCRIPT,) = re.findall(r"^```js\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
(CONFIG,) = re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
GREETING: Final = Call("openai", "gpt-4o-2024-08-06", "chat")


def title_of(program: str) -> str:
    titles: list[str] = re.findall(r"^## (.*)", GUIDE[: GUIDE.index(program)], re.MULTILINE)
    return titles[-1].replace(" ", "-")


@pytest.mark.otlp_clients
@pytest.mark.parametrize("program", PROGRAMS, ids=map(title_of, PROGRAMS))
async def test_a_python_program_of_the_guide(running: Server, models: ModelApi, tmp_path: Path, program: str) -> None:
    project = Project(running, f"guide-{title_of(program)}")
    (tmp_path / "tracing.py").write_text(TRACING)
    (tmp_path / "program.py").write_text(program)
    variables = guide_variables(project, models)
    said = await run_client([python_client()[0], str(tmp_path / "program.py")], variables)
    await assert_one_greeting(project, models, said)


@pytest.mark.otlp_clients
async def test_the_javascript_program_of_the_guide(running: Server, models: ModelApi) -> None:
    project = Project(running, "guide-js")
    packages = Path(javascript_client()[-1]).parent
    with tempfile.TemporaryDirectory(dir=packages) as directory:  # Node looks for packages above the program
        program = Path(directory) / "program.mjs"
        program.write_text(JAVASCRIPT)
        said = await run_client(["node", str(program)], guide_variables(project, models))
    await assert_one_greeting(project, models, said)


@pytest.mark.otlp_clients
@pytest.mark.collector
async def test_the_collector_of_the_guide(running: Server, models: ModelApi, tmp_path: Path) -> None:
    project = Project(running, "guide-collector")
    config = yaml.safe_load(CONFIG)
    assert config.pop("receivers")["otlp"]["protocols"].keys() == {"grpc", "http"}
    config["extensions"]["file_storage"]["directory"] = "queue"
    config["exporters"]["otlp_http"]["endpoint"] = f"http://{running.http}"
    with Collector(tmp_path / "collector", config, variables={"SPENDSTREAM_KEY": project.key}) as collector:
        variables = client_environment(models, collector.http, {})
        await run_client([*python_client(), "many-openai-calls", "Hello"], variables)
        assert await project.sums(sums_of([GREETING])) == sums_of([GREETING]), collector.log()


def guide_variables(project: Project, models: ModelApi) -> dict[str, str]:
    """What a reader sets, and a provider that is a stand-in."""
    provider = {
        "OPENAI_API_KEY": "a-key-for-tests",
        "OPENAI_BASE_URL": f"{models.url}/v1",
        "OPENAI_API_BASE": f"{models.url}/v1",
        "SPENDSTREAM_KEY": project.key,
    }
    return client_of(project, models, f"http://{project.running.http}", **provider)


async def assert_one_greeting(project: Project, models: ModelApi, said: str) -> None:
    assert TEXT in said
    assert len(models.calls) == 1
    assert await project.sums(sums_of([GREETING])) == sums_of([GREETING]), said


# --- faults on the way ----------------------------------------------------------------------------------------------


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


FAST: Final = {**PATIENT, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": str(BATCH)}
PROTOCOLS: Final = ("http/protobuf", "http/json", "grpc")


@pytest.mark.otlp_clients
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
        assert sum(count for fault, count in proxy.met.items() if fault.startswith("kill")) == KILLS, said
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


@pytest.mark.otlp_clients
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
