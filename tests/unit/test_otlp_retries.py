"""A span that comes once more is the same event, and no conflict, whatever happened to its request on the way."""

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from processor.core.events import codec
from processor.core.events.prices.pricing import Pricer
from server.otlp import json_spans, protobuf_spans
from server.otlp.span_event import OtlpEvent
from server.otlp.span_parents import Tree
from server.otlp.span_survey import Survey
from server.otlp.spans import SpanRequest
from server.prices.builtin import builtin_list
from tests.support.otlp import CHAT, JsonObject, attributes, make_span, request, spans_of, to_json, with_binary_ids

FOLDER: Final = Path(__file__).parent.parent / "otlp_spans"
CHAT_BY_SYSTEM: Final = {name: value for name, value in CHAT.items() if name != "gen_ai.provider.name"}
RECORDED: Final = sorted(path for path in FOLDER.glob("*.json") if not path.name.endswith(".calls.json"))


def events_in(opened: SpanRequest) -> list[OtlpEvent]:
    """What intake gets."""
    survey = Survey("genai", "keep", project="p")
    asyncio.run(survey.run(opened, remember=False))
    tree = Tree(survey.nodes)
    parents, wrappers = tree.parents(), tree.wrappers()
    return [survey.event(each, opened, parents[each.place], is_wrapper=each.place in wrappers) for each in survey.kept]


def digests_of(opened: SpanRequest) -> dict[str, int]:
    """Event -> digest."""
    events = events_in(opened)
    found = {json.loads(event.line)["event_id"]: event.digest for event in events}
    assert len(found) == len(events)
    return found


def from_json(body: JsonObject) -> dict[str, int]:
    return digests_of(json_spans.open_request(to_json(body)))


def from_protobuf(body: JsonObject) -> dict[str, int]:
    made = ParseDict(with_binary_ids(body), ExportTraceServiceRequest())
    return digests_of(protobuf_spans.open_request(made.SerializeToString()))


def holders(body: JsonObject) -> Iterator[dict[str, Any]]:
    """What has attributes: resources and spans."""
    yield from (each.setdefault("resource", {}) for each in body["resourceSpans"])
    yield from spans_of(body)


def shuffled(body: JsonObject) -> JsonObject:
    rng = random.Random(1)
    for holder in holders(body):
        rng.shuffle(holder.get("attributes", []))
    for resource in body["resourceSpans"]:
        rng.shuffle(resource["scopeSpans"])
        for scope in resource["scopeSpans"]:
            rng.shuffle(scope["spans"])
    return body


def enriched(body: JsonObject) -> JsonObject:
    """With what processors of a Collector add: to resources, and to spans what no field is made of but environment."""
    added = {
        "deployment.environment.name": "other",
        "k8s.pod.name": "p",
        "telemetry.sdk.version": "9",
        "tail.sampled": 1,
    }
    for holder in holders(body):
        names = {each["key"] for each in holder.get("attributes", [])}
        holder.setdefault("attributes", []).extend(attributes({k: v for k, v in added.items() if k not in names}))
    for span in spans_of(body):
        span["traceState"] = "ot=th:0"
        span["flags"] = 0x301
    return body


def alone(body: JsonObject) -> Iterator[JsonObject]:
    """Each span in a request of its own."""
    for resource in body["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                yield {"resourceSpans": [{**resource, "scopeSpans": [{**scope, "spans": [span]}]}]}


def one_by_one(body: JsonObject) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in alone(body):
        found |= from_json(each)
    return found


WAYS: Final[dict[str, Callable[[JsonObject], dict[str, int]]]] = {
    "protobuf": from_protobuf,
    "in another order": lambda body: from_json(shuffled(body)),
    "through processors": lambda body: from_protobuf(enriched(body)),
    "split up": one_by_one,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_second_copy_is_the_same_event_and_no_conflict(path: Path, way: str) -> None:
    body = json.loads(path.read_text())
    first = from_json(body)
    assert first
    assert WAYS[way](deepcopy(body)) == first


ODD: Final[tuple[dict[str, Any], ...]] = (
    {"gen_ai.system": "groq", "gen_ai.request.model": "llama-3.3-70b-versatile"},
    {"gen_ai.system": "nobody", "gen_ai.request.model": "grok-3", "metadata": '{"provider.raw":"x_ai"}'},
    {"metadata": '{"provider.raw":"groq"}'},
    {"gen_ai.system": "groq", "ai.telemetry.metadata.provider.raw": "x_ai", "gen_ai.request.model": "grok-3"},
    {"gen_ai.usage.output_tokens": None},
    {"gen_ai.usage.cost": 0.5},
    {"gen_ai.usage.cache_read.input_tokens": 500, "gen_ai.usage.cache_creation.input_tokens": 7},
)


@pytest.mark.parametrize("body", [*(json.loads(path.read_text()) for path in RECORDED), *ODD])
def test_prices_are_those_of_what_the_lines_say(body: JsonObject) -> None:
    """What the mapping knows already is not read from the lines once more. What is kept for an hour no line says."""
    sent = body if "resourceSpans" in body else request(make_span(attributes=CHAT_BY_SYSTEM | body))
    events = events_in(json_spans.open_request(to_json(sent)))
    pricer = Pricer([builtin_list()])
    columns = codec.decode("json", [event.line for event in events], "lenient", 2**60).columns
    assert len(columns) == len(events)
    plainly = pricer.priced(columns, "json")
    known = pricer.priced(columns, "json", [event.sent for event in events])
    calls = [event.sent if b'"kind":"span"' not in event.line else None for event in events]
    hourly = np.array([sent is not None and sent[3] > 0 for sent in calls])
    assert known.rows[~hourly].tobytes() == plainly.rows[~hourly].tobytes()
    assert known.cost_sources == plainly.cost_sources
    for place in np.flatnonzero(hourly).tolist():  # $6 instead of $3.75 a million: they are Anthropic's
        _, _, _, tokens = events[place].sent or (None, 0, 0, 0)
        assert known.rows["cost"][place] - plainly.rows["cost"][place] == tokens * 2_250_000
