"""What came in over OTLP keeps all that it has through an export, an import and a rebuild, and a retry then is one."""

import asyncio
import hashlib
import json
import re
import time
import urllib.request
from collections.abc import Mapping
from copy import deepcopy
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from tests.integration.test_otlp_clients import export_grpc, post_json
from tests.support import clients
from tests.support.clients import Reader
from tests.support.events import ABSENT, make_event
from tests.support.otlp import CHAT, JsonObject, make_span, request, spans_of
from tests.support.otlp_events import events_of
from tests.support.patience import PROCESS_PATIENCE
from tests.support.priced_projects import PRICES, Project
from tests.support.server import Server, run_cli, server
from tools.record_spans import SPANS

pytestmark = pytest.mark.slow

RANGE: Final = "start=2026-04-01&end=2026-05-01"
ODD: Final = request(
    make_span(101, attributes={**CHAT, "gen_ai.usage.cost": 0.25, "user.id": "u1"}),
    make_span(102, name="x" * 300, status={"code": 2, "message": "m" * 300}),
    resource={"deployment.environment.name": "staging"},
)
"""A cost that was sent, and what is longer than a field: an event does not say all that its span did."""
EVENTS: Final = (
    make_event(tags={"team": "search", "": "x"}, tools_used=["a", "b"], eval_scores={"good": 0.5}, mystery={"a": [1]}),
    make_event(kind="span", name="step", cost_usd=ABSENT),
    make_event(cost_usd=ABSENT, name="call", cache_write_tokens=3, reasoning_tokens=4, model="gpt-4o-2024-08-06"),
    make_event(cost_usd=ABSENT, input_tokens=5, cached_tokens=9, model="nobody-knows", user_id="u2"),
    make_event(cost_usd=ABSENT, output_tokens=ABSENT),
)
"""Beside them events that came in as such."""


def recorded() -> list[JsonObject]:
    """What real libraries sent. Recordings begin with the same ids: here each has ids of its own."""
    found = []
    for path in sorted(SPANS.glob("*.calls.json")):
        name = path.name.removesuffix(".calls.json")
        body = json.loads((SPANS / f"{name}.json").read_text())
        for span in spans_of(body):
            span["traceId"] = hashlib.sha256(f"{name} {span['traceId']}".encode()).hexdigest()[:32]
        found.append(body)
    return found


def through_a_collector(body: JsonObject) -> JsonObject:
    """The same with what a collector puts into a resource."""
    made = deepcopy(body)
    for resource in made["resourceSpans"]:
        added = {"key": "deployment.environment", "value": {"stringValue": "elsewhere"}}
        resource.setdefault("resource", {}).setdefault("attributes", []).append(added)
    return made


class Copy:
    """The project on one of the servers that have it."""

    def __init__(self, running: Server, tables: Reader) -> None:
        self.project = Project(running, "transfer")
        self._tables = tables
        tables.number = Decimal

    async def get(self, path: str, patience: float = PROCESS_PATIENCE) -> Any:
        """An answer; a store may only be starting."""
        deadline = time.monotonic() + patience
        while True:
            answer = await self._tables.request("GET", path, self.project.key)
            if answer.status == 200:
                return answer.json
            assert time.monotonic() < deadline, answer.json
            await asyncio.sleep(0.2)

    async def counted(self, used: int, copies: int, patience: float = PROCESS_PATIENCE) -> Any:
        """What the quota says of so many events and copies, once it does, or after a while."""
        deadline = time.monotonic() + patience
        while True:
            quota = await self.get("/v1/quota")
            if (quota["used"] >= used and quota["duplicates"] >= copies) or time.monotonic() > deadline:
                return quota
            await asyncio.sleep(0.1)

    async def events(self, count: int, patience: float = PROCESS_PATIENCE) -> dict[str, Mapping[str, Any]]:
        """Every event of the store, with all that it has, once there are so many, or after a while."""
        deadline = time.monotonic() + patience
        while True:
            found: dict[str, Mapping[str, Any]] = {}
            cursor: str | None = ""
            while cursor is not None:
                after = f"&cursor={cursor}" if cursor else ""
                page = await self.get(f"/v1/events?kind=all&limit=200&{RANGE}{after}")
                found |= {each["event_id"]: each for each in page["events"]}
                cursor = page["nextCursor"]
            if len(found) >= count or time.monotonic() > deadline:
                return found

    async def total(self) -> Any:
        """The sums of the tables."""
        return (await self.get("/v1/users"))["total"]


BODIES: Final = [*recorded(), ODD]
COUNT: Final = sum(len(events_of(body)) for body in BODIES)


def check_what_it_says_of_itself(running: Server) -> None:
    """Counters of spans on /metrics, and a line of the access log for each request."""
    with urllib.request.urlopen(f"http://{running.http}/metrics", timeout=PROCESS_PATIENCE) as answer:
        text = answer.read().decode()
    found = re.findall(r'^spendstream_otlp_(spans\w*)_total\{\w+="\w+"\} (\S+)$', text, re.MULTILINE)
    sums = {name: sum(float(value) for each, value in found if each == name) for name, _ in found}
    spans = sum(len(spans_of(body)) for body in BODIES)
    assert sums == {"spans": COUNT, "spans_dropped": spans - COUNT, "spans_bad": 0}
    assert f'spendstream_batches_accepted_total{{door="otlp"}} {len(BODIES):.1f}' in text
    lines = [(each["method"], each["path"], each["status"]) for each in running.entries("http.request")]
    assert lines.count(("POST", "/v1/traces", 200)) == len(BODIES)


async def test_nothing_is_lost_over_export_import_and_rebuild_and_a_retry_is_no_conflict(tmp_path: Path) -> None:
    prices, lines, count = tmp_path / "tests.toml", tmp_path / "all.ndjson", COUNT + len(EVENTS)
    prices.write_text(PRICES)
    with server(tmp_path / "data", event_store="on", partitions=2, prices=prices, access_log="true") as first:
        async with clients.reader(first) as tables:
            source = Copy(first, tables)
            for body in BODIES:
                await post_json(source.project, body)
            answer = await tables.ingest(EVENTS, source.project.key, Prefer="handling=lenient")
            assert answer.json == {"accepted": len(EVENTS)}
            assert (await source.counted(count, 0))["used"] == count
            wanted, total = await source.events(count), await source.total()
            assert len(wanted) == count
            assert {each.get("cost_source") for each in wanted.values()} >= {"client", None}
        check_what_it_says_of_itself(first)
        exported = first.cli("export", "--output", str(lines))
        assert exported.returncode == 0, exported.stderr

    copies = 0
    for step in ("import", "rebuild"):
        done = run_cli(tmp_path / "copy", step, *([str(lines)] if step == "import" else []), event_store="on")
        assert done.returncode == 0, done.stderr
        with server(tmp_path / "copy", event_store="on", prices="off") as second:
            async with clients.reader(second) as tables:
                copy = Copy(second, tables)
                await copy.counted(count, copies)
                assert await copy.events(count) == wanted
                assert await copy.total() == total
                for body in BODIES:  # from the application again, over another protocol and through a collector
                    await export_grpc(copy.project, through_a_collector(body))
                copies += COUNT
                quota = await copy.counted(count, copies)
                assert (quota["used"], quota["duplicates"], quota["conflicts"]) == (count, copies, 0)
                assert await copy.total() == total
            assert clients.verify(second) == []
