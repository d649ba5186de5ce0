"""What the compiled kernel makes of spans by plans, and what it leaves to its twin; tests/fuzz compares the values."""

import asyncio
import json
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from structlog.testing import capture_logs

from processor.core.kernel.loaded import RUNNING, kernel
from protos.spendstream.otlp.v1 import spans_pb2 as pb
from server.ingest.intake import Intake
from server.otlp import compiled_spans, protobuf_spans, span_survey
from server.otlp.compiled_spans import Made, PlannedSpans
from server.otlp.kinds import OTHER
from server.otlp.span_event import OtlpEvent, context_of, event_of, reading_of
from server.otlp.span_export import SpanExport
from server.otlp.span_parents import Tree
from server.otlp.span_plans import COUNT, END, HEAD, LITERAL, MAX_NAMED, NO_COUNT, PIECE, STEP, VALUE, Plan, plan_of
from server.otlp.span_survey import TURN, Survey
from tests.contract.fakes import NOW, FakeQuotas
from tests.support.otlp import CHAT, START, make_span, request, to_protobuf, with_binary_ids
from tests.support.publisher import FakePublisher
from tests.unit.test_cardinality import KEY

pytestmark = pytest.mark.skipif(RUNNING == "pure", reason="the compiled kernel does not run")

FOLDER: Final = Path(__file__).parent.parent / "otlp_spans"
RECORDED: Final = sorted(path for path in FOLDER.glob("*.json") if not path.name.endswith(".calls.json"))


class Looked:
    """A request whose spans have been looked at."""

    def __init__(self, body: bytes, planned: PlannedSpans | None, *, remember: bool = True) -> None:
        opened = protobuf_spans.open_request(body)
        survey = Survey("genai", "keep", planned, "p")
        asyncio.run(survey.run(opened, remember=remember))
        tree = Tree(survey.nodes)
        parents, wrappers = tree.parents(), tree.wrappers()
        self.made = sum(each.made is not None for each in survey.kept)
        self.events: list[OtlpEvent] = [
            survey.event(each, opened, parents[each.place], is_wrapper=each.place in wrappers) for each in survey.kept
        ]
        self.dropped = survey.dropped


def planned_for(*bodies: bytes) -> PlannedSpans:
    """With plans for all shapes in some requests, as far as they can have one."""
    planned = PlannedSpans("genai", "keep")
    for body in bodies:
        for group in protobuf_spans.open_request(body).groups:
            context = context_of(group.origin, "keep", 1)
            for raw in [*group.spans, *group.spans]:
                (taken,) = planned.take([raw], "p", context)
                if isinstance(taken, bytes):
                    planned.learn(taken, raw, context)
    return planned


def made_of(planned: PlannedSpans, span: dict[str, Any]) -> OtlpEvent | None:
    """What the kernel makes of a span, compared with the twin; None: it leaves it to that."""
    body = to_protobuf(request(span))
    found, by_twin = Looked(body, planned), Looked(body, None)
    assert found.events == by_twin.events
    return found.events[0] if found.made else None


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_it_makes_all_that_libraries_send_but_spans_with_events(path: Path) -> None:
    body = ParseDict(with_binary_ids(json.loads(path.read_text())), ExportTraceServiceRequest()).SerializeToString()
    planned = planned_for(body)
    compared = []
    for group in protobuf_spans.open_request(body).groups:
        context = context_of(group.origin, "keep", 1)
        for raw, taken in zip(group.spans, planned.take(list(group.spans), "p", context), strict=True):
            hourly = reading_of(protobuf_spans.read(raw), context).usage.cache_write_1h_tokens
            compared.append((bool(pb.Span.FromString(raw).events or hourly), isinstance(taken, Made)))
    assert compared
    assert all(is_made != is_left for is_left, is_made in compared)
    found, by_twin = Looked(body, planned), Looked(body, None)
    assert found.events == by_twin.events
    assert found.dropped == by_twin.dropped
    assert found.made > 0


def test_a_shape_is_learned_when_it_comes_for_the_second_time() -> None:
    planned = PlannedSpans("genai", "keep")
    bodies = [to_protobuf(request(make_span(number))) for number in range(1, 5)]
    assert [Looked(body, planned).made for body in bodies] == [0, 0, 1, 1]


async def test_plans_last_from_request_to_request(monkeypatch: pytest.MonkeyPatch) -> None:
    by_twin: list[OtlpEvent] = []

    def counted(*arguments: Any, **others: Any) -> OtlpEvent:
        by_twin.append(event_of(*arguments, **others))
        return by_twin[-1]

    monkeypatch.setattr(span_survey, "event_of", counted)
    export = SpanExport(Intake(FakePublisher(), FakeQuotas(), lambda: NOW))
    for number in range(1, 6):
        answer = await export.accept(KEY, to_protobuf(request(make_span(number))), "protobuf", lambda _: None)
        assert answer.rejected == 0
    assert len(by_twin) == 2


def test_only_one_shape_is_learned_at_a_time() -> None:
    planned = PlannedSpans("genai", "keep")
    spans = [make_span(number, attributes=CHAT | {f"name{number}": 1}) for number in range(1, 4)]
    body = to_protobuf(request(*spans))
    assert [Looked(body, planned).made for _ in range(6)] == [0, 0, 1, 2, 3, 3]


def test_plans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_spans, "MAX_PLANS", 2)
    monkeypatch.setattr(compiled_spans, "MAX_SEEN", 2)
    spans = [make_span(number, attributes=CHAT | {f"name{number}": 1}) for number in range(1, 8)]
    bodies = [to_protobuf(request(span)) for span in spans]
    planned = planned_for(*bodies)
    assert [Looked(body, planned).made for body in bodies] == [0, 0, 0, 0, 1, 1, 1]


def test_a_sender_of_ever_new_shapes_leaves_the_plans_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_spans, "MAX_PLANS", 4)
    used = [to_protobuf(request(make_span(1, attributes=CHAT | {f"used{number}": 1}))) for number in range(2)]
    planned = planned_for(*used)
    for number in range(40):
        new = to_protobuf(request(make_span(number + 2, attributes=CHAT | {f"new{number}": 1})))
        assert [Looked(new, planned).made for _ in range(3)] == [0, 0, 1]
        assert [Looked(body, planned).made for body in used] == [1, 1], number


def test_the_spans_of_a_large_request_are_made_when_their_turn_comes() -> None:
    body = to_protobuf(request(*(make_span(number, 1 if number > 1 else 0) for number in range(1, 3 * TURN))))
    planned = planned_for(to_protobuf(request(make_span(), make_span())))
    assert Looked(body, planned, remember=False).events == Looked(body, None).events


def test_a_plan_serves_other_resources_and_projects() -> None:
    first = to_protobuf(request(make_span(), resource={"deployment.environment.name": "a"}))
    other = to_protobuf(request(make_span(), resource={"telemetry.sdk.version": 'with "quotes"', "host": "ä"}))
    planned = planned_for(first)
    for body in (first, other):
        found = Looked(body, planned)
        assert found.made == 1
        assert found.events == Looked(body, None).events
    assert json.loads(Looked(other, planned).events[0].line)["environment"] == "unknown"


def test_the_environment_of_a_span_is_not_taken_for_that_of_its_resource() -> None:
    here = {"deployment.environment.name": "same"}
    planned = planned_for(to_protobuf(request(make_span(attributes=CHAT | here), resource=here)))
    body = to_protobuf(request(make_span(attributes=CHAT | here), resource={"deployment.environment.name": "other"}))
    found = Looked(body, planned)
    assert found.made == 1
    assert json.loads(found.events[0].line)["environment"] == "same"


@pytest.mark.parametrize("user", ["bob", "ä" * 64, 'a "b" \\ \n\x00', "x" * 128, "", "x" * 129, "ä" * 300])
def test_any_text_may_be_a_user(user: str) -> None:
    planned = planned_for(to_protobuf(request(make_span(attributes=CHAT | {"user.id": "ann"}))))
    event = made_of(planned, make_span(attributes=CHAT | {"user.id": user}))
    assert (event is not None) == (0 < len(user.encode()) <= MAX_NAMED)


def test_a_user_that_is_a_tag_beside_another_user_is_no_free_text() -> None:
    def span(user: str) -> dict[str, Any]:
        return make_span(attributes=CHAT | {"user.id": "ann", "ai.telemetry.metadata.userId": user})

    planned = planned_for(to_protobuf(request(span("bob"))))
    assert made_of(planned, span("eve")) is None


def test_wrappers_and_children_of_dropped_spans_are_left_to_the_twin() -> None:
    inner, outer = make_span(2, 1), make_span(1)
    under_dropped = make_span(4, 3)
    spans = [outer, inner, make_span(3, 1, attributes={"http.request.method": "GET"}), under_dropped]
    body = to_protobuf(request(*spans))
    planned = planned_for(body)
    found, by_twin = Looked(body, planned), Looked(body, None)
    assert found.made == 3
    assert found.events == by_twin.events
    assert found.dropped == by_twin.dropped == {"http": 1}
    events = [json.loads(event.line) for event in found.events]
    assert events[0]["wrapper"]
    assert events[2]["sent_parent_span_id"] == "0000000000000003"


@pytest.mark.parametrize(
    "changes",
    [
        {"events": [{"name": "first_token", "timeUnixNano": str(START + 7), "attributes": {}}]},
        {"endTimeUnixNano": str(START + 999)},
        {"endTimeUnixNano": str(START + 10**15)},
        {"attributes": CHAT | {f"name{number}": 1 for number in range(130)}},
        {"attributes": CHAT | {"n" * 201: 1}},
        {"attributes": CHAT | {f"text{number}": "x" * 8000 for number in range(25)}},
    ],
    ids=["events", "shorter than a microsecond", "longer than eleven days", "many", "a long name", "much"],
)
def test_what_is_left_to_the_twin(changes: dict[str, Any]) -> None:
    span = make_span(**changes)
    body = to_protobuf(request(make_span(), span))
    planned = planned_for(body)
    assert made_of(planned, make_span()) is not None
    assert made_of(planned, span) is None


@pytest.mark.parametrize(
    "value", [0, 2**63 - 1, -1, -(2**63), True, False, 0.7, 1e300, float("nan"), None, b"\xff", [1, "a"], {"a": [None]}]
)
def test_a_value_that_is_copied_may_be_anything(value: Any) -> None:
    planned = planned_for(to_protobuf(request(make_span(attributes=CHAT | {"any": "text"}))))
    assert made_of(planned, make_span(attributes=CHAT | {"any": value})) is not None


@given(st.text(max_size=60) | st.text(st.characters(max_codepoint=0x7F), max_size=60))
def test_texts_are_written_as_the_library_writes_them(text: str) -> None:
    assert made_of(_PLANNED, make_span(attributes=CHAT | {"any": text})) is not None


@given(st.integers(1, 2**64 - 1), st.integers(1000, 10**15 - 1))
def test_times_are_written_as_the_twin_writes_them(start: int, lasts: int) -> None:
    span = make_span(
        attributes=CHAT | {"any": ""}, startTimeUnixNano=str(start), endTimeUnixNano=str(min(start + lasts, 2**64 - 1))
    )
    event = made_of(_PLANNED, span)
    assert event is not None or start + 1000 > 2**64 - 1


counts = st.none() | st.integers(0, 300) | st.integers(0, 2**53 - 1)


@given(counts, counts, counts, counts, counts)
def test_counts_have_one_meaning(whole: Any, answer: Any, cached: Any, written: Any, thoughts: Any) -> None:
    names = (
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.usage.cache_creation.input_tokens",
        "gen_ai.usage.reasoning.output_tokens",
    )
    sent = (whole, answer, cached, written, thoughts)
    tokens = {name: count for name, count in zip(names, sent, strict=True) if count is not None}
    plain = dict.fromkeys(tokens, 1)
    without = {name: value for name, value in CHAT.items() if "tokens" not in name}
    planned = planned_for(to_protobuf(request(make_span(attributes=without | plain))))
    assert made_of(planned, make_span(attributes=without | tokens)) is not None


def test_a_plan_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> Plan:
        plan = plan_of(*arguments)
        return msgspec.structs.replace(plan, program=plan.program.replace(b"openai", b"openas"))

    def no_plan(*_: Any) -> Plan:
        return Plan(b"not a program", OTHER, True, "other", None)

    body = to_protobuf(request(make_span()))
    for made in (wrong, no_plan):
        monkeypatch.setattr(compiled_spans, "plan_of", made)
        planned = planned_for(body)
        assert Looked(body, planned).made == 0
        assert Looked(body, planned).events == Looked(body, None).events


@pytest.mark.parametrize("value", [b"\x08", b"\xff\xff", b"\x0a\x7f"])
def test_a_damaged_value_costs_itself_only(value: bytes) -> None:
    """Also when its span is the one that a plan is made of."""
    span = pb.Span.FromString(protobuf_spans.open_request(to_protobuf(request(make_span(1)))).groups[0].spans[0])
    span.attributes.append(pb.KeyValue(key=b"app.damaged", value=value).SerializeToString())
    scope = pb.ScopeSpans(spans=[span.SerializeToString()])
    body = pb.ExportRequest(resource_spans=[pb.ResourceSpans(scope_spans=[scope])]).SerializeToString()
    planned = PlannedSpans("genai", "keep")
    by_twin = Looked(body, None).events
    assert len(by_twin) == 1
    assert [Looked(body, planned).events for _ in range(3)] == [by_twin] * 3


def test_a_plan_that_cannot_be_made_fails_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    body = to_protobuf(request(make_span(1, attributes=CHAT)))

    def fails(*_: object) -> Plan:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(compiled_spans, "plan_of", fails)
    planned = PlannedSpans("genai", "keep")
    with capture_logs() as logs:
        assert [Looked(body, planned).events for _ in range(3)] == [Looked(body, None).events] * 3
    assert [line["event"] for line in logs] == ["otlp_plan_failed"]


def test_a_user_that_is_encoded_in_another_way_is_left_to_the_twin() -> None:
    def body(user: bytes) -> bytes:
        opened = pb.ExportRequest.FromString(to_protobuf(request(make_span())))
        span = pb.Span.FromString(opened.resource_spans[0].scope_spans[0].spans[0])
        span.attributes.append(pb.KeyValue(key=b"user.id", value=user).SerializeToString())
        opened.resource_spans[0].scope_spans[0].spans[0] = span.SerializeToString()
        return bytes(opened.SerializeToString())

    plain, twice = body(b"\x0a\x03ann"), body(b"\x0a\x03eve\x0a\x03ann")
    planned = planned_for(plain, twice)
    assert Looked(plain, planned).made == 1
    assert Looked(twice, planned).events == Looked(twice, None).events == Looked(plain, None).events


class Program(NamedTuple):
    """A plan that nobody has made."""

    program: bytes
    raw_provider: None = None


def test_the_kernel_refuses_what_is_no_plan() -> None:
    assert kernel is not None
    (raw,) = protobuf_spans.open_request(to_protobuf(request(make_span()))).groups[0].spans
    (shape,) = kernel.span_lines([raw], b"", b"", {}, [], bytes, sha256, tuple)

    def lines(program: bytes) -> list[Any]:
        assert kernel is not None
        found: list[Any] = kernel.span_lines([raw], b"", b"", {shape: Program(program)}, [], bytes, sha256, tuple)
        return found

    head = HEAD.pack(*[NO_COUNT] * 5, False, False, False, True, *[0] * 5)
    assert lines(b"") == [None]
    assert lines(head + 2 * STEP.pack(END, 0))[0][6] == (b"", kernel.xxh3_of(b""))
    for program in (
        head[:-1],
        HEAD.pack(5, *[NO_COUNT] * 4, False, False, False, True, *[0] * 5) + 2 * STEP.pack(END, 0),
        head,
        head + STEP.pack(END, 0),
        head + STEP.pack(LITERAL, 2) + b"a",
        head + STEP.pack(VALUE, 5) + 2 * STEP.pack(END, 0),
        head + STEP.pack(COUNT, 5) + 2 * STEP.pack(END, 0),
        head + STEP.pack(PIECE, 0) + 2 * STEP.pack(END, 0),
        head + STEP.pack(15, 0) + 2 * STEP.pack(END, 0),
    ):
        with pytest.raises(ValueError, match="no plan"):
            lines(program)


_PLANNED: Final = (
    PlannedSpans("genai", "keep")
    if kernel is None
    else planned_for(to_protobuf(request(make_span(attributes=CHAT | {"any": "text"}))))
)
